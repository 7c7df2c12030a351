//! The container's processes as /proc shows them.

use crate::failure::{Context, Result};
use crate::files;
use crate::prelude::*;
use tether_wire::message::{ProcessInfo, ProcessPage};

/// Most processes of one page.
const PAGE: usize = 64;
/// Most bytes of a command line.
const COMMAND: usize = 4096;

/// The processes above `after`, in order of pid. Everything in the machine but tether, its own children
/// and the kernel's own threads is the container.
///
/// # Errors
/// /proc cannot be read.
pub fn page(after: u32, is_own: impl Fn(u32) -> bool) -> Result<ProcessPage> {
    let mut pids: Vec<u32> = files::names("/proc")
        .context(|| "reading /proc")?
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(|pid| *pid > after && *pid > 1 && !is_own(*pid))
        .collect();
    pids.sort_unstable();
    let mut page = ProcessPage::default();
    for pid in pids {
        if page.processes.len() == PAGE {
            page.more = true;
            break;
        }
        // One that is gone meanwhile is not in the list.
        let directory = format!("/proc/{pid}");
        let stat = files::text(format!("{directory}/stat"));
        let Some((mut info, name)) = read_stat(pid, &stat) else {
            continue;
        };
        if is_kernel_thread(&info) {
            continue;
        }
        read_status(&mut info, &files::text(format!("{directory}/status")));
        let arguments = files::content(format!("{directory}/cmdline")).unwrap_or_default();
        info.command = command(&arguments, &name);
        page.processes.push(info);
    }
    Ok(page)
}

/// kthreadd, or a child of it.
fn is_kernel_thread(info: &ProcessInfo) -> bool {
    (info.pid == 2 && info.parent == 0) || info.parent == 2
}

/// /proc/PID/stat (proc(5)): the name is in parentheses and may hold any.
fn read_stat(pid: u32, text: &str) -> Option<(ProcessInfo, String)> {
    const PAGE_SIZE: u64 = 4096;
    const TICK_MS: u64 = 10;
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let words: Vec<&str> = tail.split_whitespace().collect();
    // Fields are counted from 1 in proc(5), and the third is the first here.
    let number = |field: usize| -> Option<i64> { words.get(field - 3)?.parse().ok() };
    let positive = |field: usize| u64::try_from(number(field)?).ok();
    let info = ProcessInfo {
        pid,
        parent: u32::try_from(number(4)?).ok()?,
        container_pid: pid,
        uid: 0,
        state: words.first()?.bytes().next()?,
        cpu_ms: (positive(14)? + positive(15)?) * TICK_MS,
        started_ms: positive(22)? * TICK_MS,
        resident: positive(24)? * PAGE_SIZE,
        virtual_size: positive(23)?,
        threads: u32::try_from(number(20)?).ok()?,
        terminal: number(7)? as u32,
        command: String::new(),
    };
    Some((info, name.to_owned()))
}

/// `Uid:` (the second is the effective one) and `NSpid:` (the last is the innermost one).
fn read_status(info: &mut ProcessInfo, text: &str) {
    for line in text.lines() {
        if let Some(ids) = line.strip_prefix("Uid:") {
            let effective = ids.split_whitespace().nth(1);
            info.uid = effective.and_then(|id| id.parse().ok()).unwrap_or(0);
        } else if let Some(ids) = line.strip_prefix("NSpid:") {
            let innermost = ids.split_whitespace().next_back();
            info.container_pid = innermost.and_then(|id| id.parse().ok()).unwrap_or(info.pid);
        }
    }
}

fn command(arguments: &[u8], name: &str) -> String {
    let end = arguments
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return format!("[{name}]");
    }
    let spaced: Vec<u8> = arguments[..end.min(COMMAND)]
        .iter()
        .map(|byte| if *byte == 0 { b' ' } else { *byte })
        .collect();
    let mut command = String::from_utf8_lossy(&spaced).into_owned();
    // A replaced byte takes three.
    while command.len() > COMMAND {
        command.pop();
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (we) ird) S 7 42 42 34816 42 4194304 1 2 3 4 15 25 0 0 20 0 3 0 500 \
                        4096000 100 18446744073709551615 0 0 0";

    #[test]
    fn stat_is_read_past_a_hostile_name() {
        let (info, name) = read_stat(42, STAT).unwrap();
        assert_eq!(name, "we) ird");
        assert_eq!((info.parent, info.state, info.threads), (7, b'S', 3));
        assert_eq!((info.cpu_ms, info.started_ms), (400, 5000));
        assert_eq!((info.virtual_size, info.resident), (4_096_000, 409_600));
        assert_eq!(info.terminal, 34816);
        assert!(read_stat(1, "1 (x) S 0").is_none());
        assert!(read_stat(1, "").is_none());
    }

    #[test]
    fn status_gives_effective_user_and_innermost_pid() {
        let (mut info, _) = read_stat(42, STAT).unwrap();
        read_status(&mut info, "Name:\tx\nUid:\t1\t2\t3\t4\nNSpid:\t42\t5\n");
        assert_eq!((info.uid, info.container_pid), (2, 5));
    }

    #[test]
    fn a_command_is_its_arguments_or_its_name() {
        assert_eq!(command(b"sh\0-c\0a b\0", "sh"), "sh -c a b");
        assert_eq!(command(b"", "kworker"), "[kworker]");
        assert_eq!(command(b"\0\0", "x"), "[x]");
        assert_eq!(command(&[b'a'; 5000], "x").len(), COMMAND);
        assert!(command(&[0xff; 5000], "x").len() <= COMMAND);
    }
}
