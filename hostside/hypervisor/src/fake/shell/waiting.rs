//! `wait`.

use super::Shell;
use crate::fake::files::Errno;
use crate::fake::kernel::sys::{Patience, Waited};

impl Shell {
    /// `wait`: the status of one, or of nothing for all; a trapped signal ends
    /// it early.
    pub(super) async fn wait_builtin(&mut self, wanted: &[String]) -> u8 {
        let mut status = 0;
        if wanted.is_empty() {
            while !self.jobs.is_empty() {
                match self.sys.wait(None, false, Patience::UntilSignal).await {
                    Ok(Waited::Ended(pid, _) | Waited::Stopped(pid)) => {
                        self.jobs.retain(|job| *job != pid);
                    }
                    Err(Errno::INTR) => return self.interrupted(),
                    Err(_) => self.jobs.clear(),
                }
            }
            return 0;
        }
        for word in wanted {
            let pid = match word.strip_prefix('%') {
                Some(number) => number
                    .parse::<usize>()
                    .ok()
                    .and_then(|number| self.jobs.get(number.wrapping_sub(1)).copied()),
                None => word.parse().ok(),
            };
            status = match pid {
                None => 127,
                Some(pid) => match self.sys.wait(Some(pid), false, Patience::UntilSignal).await {
                    Ok(Waited::Ended(_, ended)) => {
                        self.jobs.retain(|job| *job != pid);
                        ended.shell()
                    }
                    Err(Errno::INTR) => return self.interrupted(),
                    _ => 127,
                },
            };
        }
        status
    }

    fn interrupted(&self) -> u8 {
        self.sys
            .own(|process| process.pending.first().copied())
            .map_or(0, |number| 128 + number)
    }
}
