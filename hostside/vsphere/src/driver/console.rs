//! A machine's console: the bytes of its first serial port, the last of them kept.
//!
//! They are read from power on to power off, by whichever controller there is, and kept in memory and in a
//! bounded local file as they come, so that a controller that comes later has what this one heard. What is
//! said while there is none is lost: the network serial port of an ESXi host keeps nothing.
//!
//! ```text
//! STATE/consoles/ID        the newest, at most [`KEPT`] bytes
//! STATE/consoles/ID.old    what came before, as much
//! ```

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::MachineId;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Core;
use crate::serial::{CONSOLE, SerialPorts};

/// How much is kept.
const KEPT: usize = 256 << 10;
/// How many pieces a follower may be behind.
const BEHIND: usize = 256;

#[derive(Debug, Default)]
struct State {
    last: VecDeque<u8>,
    followers: Vec<mpsc::Sender<Vec<u8>>>,
    reader: Option<AbortHandle>,
    /// Where it is kept, once it is known.
    kept: Option<Kept>,
}

/// Whose words the next ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Those of a run that begins.
    New,
    /// Those of a run that an earlier controller may have heard the beginning of.
    Found,
}

/// A machine's console.
#[derive(Debug, Default)]
pub struct Console(Arc<Mutex<State>>);

/// A console's files.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: Option<File>,
    length: usize,
}

impl Kept {
    fn old(path: &Path) -> PathBuf {
        path.with_extension("old")
    }

    /// Goes on where an earlier controller ended, or begins anew.
    fn open(path: &Path, run: Run) -> io::Result<Self> {
        if run == Run::New {
            remove(path)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(KEPT);
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            length,
        })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.length + piece.len() > KEPT {
            self.file = None;
            fs::rename(&self.path, Self::old(&self.path))?;
            self.length = 0;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(File::create(&self.path)?),
        };
        file.write_all(piece)?;
        self.length += piece.len();
        Ok(())
    }

    /// What was kept last.
    fn read(path: &Path) -> VecDeque<u8> {
        let mut last = VecDeque::new();
        for path in [&*Self::old(path), path] {
            last.extend(fs::read(path).unwrap_or_default());
        }
        let over = last.len().saturating_sub(KEPT);
        last.drain(..over);
        last
    }
}

/// Removes a console's files. That there are none is success.
pub fn remove(path: &Path) -> io::Result<()> {
    for path in [&*Kept::old(path), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

impl Console {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what a machine that is powered on says, from now on, and keeps it in this file. Being read
    /// already is success.
    pub fn begin(&self, serial: Arc<dyn SerialPorts>, id: MachineId, file: &Path, run: Run) {
        let mut state = self.state();
        if state.reader.is_some() {
            return;
        }
        state.kept = match Kept::open(file, run) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a console is not kept for later");
                None
            }
        };
        state.last = match run {
            Run::New => VecDeque::new(),
            Run::Found => Kept::read(file),
        };
        let shared = self.0.clone();
        let reader = tokio::spawn(async move {
            loop {
                let mut port = match serial.connect(id, CONSOLE).await {
                    Ok(port) => port,
                    Err(error) => {
                        tracing::debug!(machine = %id, %error, "it has no console");
                        return;
                    }
                };
                let mut piece = vec![0; 16 << 10];
                while let Ok(count @ 1..) = port.read(&mut piece).await {
                    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    state.take(&piece[..count]);
                }
            }
        });
        state.reader = Some(reader.abort_handle());
    }

    /// The machine is off: followers end, what was said stays.
    pub fn end(&self) {
        let mut state = self.state();
        if let Some(reader) = state.reader.take() {
            reader.abort();
        }
        state.followers.clear();
    }

    /// What was said last; what an earlier controller heard, where this one has heard nothing.
    pub fn last(&self, file: &Path) -> Vec<u8> {
        let mut state = self.state();
        if state.last.is_empty() && state.reader.is_none() {
            state.last = Kept::read(file);
        }
        state.last.iter().copied().collect()
    }

    /// What was said, and then what is.
    pub fn follow(&self, file: &Path) -> mpsc::Receiver<Vec<u8>> {
        let last = self.last(file);
        let mut state = self.state();
        let (sender, receiver) = mpsc::channel(BEHIND);
        if !last.is_empty() {
            let _ = sender.try_send(last);
        }
        if state.reader.is_some() {
            state.followers.push(sender);
        }
        receiver
    }
}

impl Core {
    /// Where what a machine says on its console is kept.
    pub fn console_file(&self, id: &MachineId) -> PathBuf {
        self.consoles.join(id.to_string())
    }

    /// Reads a machine's console from now on.
    pub fn read_console(&self, id: &MachineId, run: Run) {
        let file = self.console_file(id);
        self.cell(id)
            .console
            .begin(self.serial.clone(), *id, &file, run);
    }

    /// Removes what machines said that are gone.
    pub fn sweep_consoles(&self) {
        let there: HashSet<String> = self.identities().iter().map(MachineId::to_string).collect();
        for entry in fs::read_dir(&self.consoles).into_iter().flatten().flatten() {
            let path = entry.path();
            let of = path.file_stem().and_then(|name| name.to_str());
            if of.is_some_and(|of| !there.contains(of)) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl State {
    fn take(&mut self, piece: &[u8]) {
        self.last.extend(piece);
        let over = self.last.len().saturating_sub(KEPT);
        self.last.drain(..over);
        if let Some(Err(error)) = self.kept.as_mut().map(|kept| kept.write(piece)) {
            tracing::warn!(%error, "a console is not kept for later any more");
            self.kept = None;
        }
        self.followers.retain(|follower| {
            // One that is too slow loses this piece.
            !matches!(
                follower.try_send(piece.to_vec()),
                Err(mpsc::error::TrySendError::Closed(_))
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_kept_and_bounded_and_forgotten_by_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let mut kept = Kept::open(&path, Run::New).unwrap();
        kept.write(b"first").unwrap();
        drop(kept);
        let mut kept = Kept::open(&path, Run::Found).unwrap();
        kept.write(b", second").unwrap();
        assert_eq!(Kept::read(&path), b"first, second");
        let piece = vec![b'x'; 16 << 10];
        for _ in 0..100 {
            kept.write(&piece).unwrap();
        }
        kept.write(b"last").unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) + size(&Kept::old(&path)) <= 2 * KEPT as u64);
        let read: Vec<u8> = Kept::read(&path).into();
        assert!(read.len() == KEPT && read.ends_with(b"xlast"));
        Kept::open(&path, Run::New).unwrap();
        assert_eq!(Kept::read(&path), b"");
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
