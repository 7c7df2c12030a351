//! Starting a QEMU, whoever it is for: its sockets, its process, its greeting, the state it may begin
//! with, and what it said when it ended instead.
//!
//! Who starts one ends it when a step fails, unless the step did; a QEMU that ended by itself is told by
//! its last words, which say more than whatever its control socket said before.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{Cause, MachineSpec};
use serde_json::json;
use tokio::net::UnixStream;

use crate::argv::{self, Birth, Prepared, Wire};
use crate::directory::{Directory, QMP_SOCKET};
use crate::driver::Options;
use crate::log;
use crate::process::{Ending, Lifetime, Process, not_started};
use crate::qmp::{EventStream, Qmp, QmpError};
use crate::template;

/// How long a starting QEMU may take to greet.
const GREETING: Duration = Duration::from_secs(60);
/// How long a QEMU whose control socket is closed may take to end.
pub(crate) const LAST_BREATH: Duration = Duration::from_secs(10);

/// Where a QEMU is started, and by what options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starter<'a> {
    /// It runs there, and listens there.
    pub directory: &'a Directory,
    /// The driver's.
    pub options: &'a Options,
}

/// What is started there.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The machine.
    pub spec: &'a MachineSpec,
    /// Its output goes there.
    pub log: &'a File,
    /// Whether it outlives this process.
    pub lifetime: Lifetime,
    /// The channel's carrier.
    pub channel: Wire,
    /// Where its first instruction comes from.
    pub birth: Birth,
    /// What `channel` and `birth` speak of by number.
    pub inherited: Vec<BorrowedFd<'a>>,
    /// The speed of the time-stamp counter, if the guest has to be told.
    pub tsc_khz: Option<u64>,
    /// UEFI's code, if the machine boots by it.
    pub uefi_code: Option<PathBuf>,
}

impl Starter<'_> {
    /// A socket that listens under this name, whoever did before. Once QEMU has inherited it, it is for
    /// the caller to close: when QEMU ends, so does the socket.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn listen(&self, name: &'static str) -> Result<UnixListener, Cause> {
        let _ = fs::remove_file(self.directory.file(name));
        UnixListener::bind(self.directory.short(name))
            .map_err(template::at("cannot listen on", &self.directory.file(name)))
    }

    /// Starts a QEMU that listens on its control socket.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; [`Cause::Hypervisor`], when there is no QEMU.
    pub fn start(&self, wanted: Wanted<'_>) -> Result<Process, Cause> {
        let qmp = self.listen(QMP_SOCKET)?;
        let arguments = argv::arguments(&Prepared {
            spec: wanted.spec,
            accelerator: self.options.accelerator,
            qmp_fd: qmp.as_raw_fd(),
            channel: wanted.channel,
            hot_plug_slots: self.options.hot_plug_slots,
            tsc_khz: wanted.tsc_khz,
            uefi_code: wanted.uefi_code,
            birth: wanted.birth,
        });
        let mut inherited = wanted.inherited;
        inherited.push(qmp.as_fd());
        let program = &self.options.program;
        Process::spawn(
            program,
            &arguments,
            self.directory.path(),
            wanted.log,
            &inherited,
            wanted.lifetime,
        )
        .map_err(|source| not_started(program, source))
    }

    /// Waits for a new QEMU's greeting. Without one, it is ended.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`].
    pub async fn greeted(&self, process: &Process) -> Result<(Qmp, EventStream), Cause> {
        let greeted = tokio::select! {
            greeted = greet(self.directory, GREETING) => greeted,
            ending = process.ended() => return Err(self.failure(&ending)),
        };
        match greeted {
            Ok(greeted) => Ok(greeted),
            Err(error) => Err(match process.kill().await {
                Ending::Killed(9) => Cause::because("QEMU started and did not answer", error),
                ending => self.failure(&ending),
            }),
        }
    }

    /// Gives a QEMU that waits for it the state that it reads at `uri`; it stands still then.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`]: it did not take it `within` that time, or it ended.
    pub async fn restore(
        &self,
        process: &Process,
        qmp: &Qmp,
        events: &mut EventStream,
        uri: &str,
        within: Duration,
    ) -> Result<(), Cause> {
        let restored = async {
            template::prepare(qmp).await.map_err(refused)?;
            let begun = qmp.execute("migrate-incoming", json!({"uri": uri}));
            begun.await.map_err(refused)?;
            template::arrived(events).await
        };
        let cause = tokio::select! {
            biased;
            ending = process.ended() => return Err(self.failure(&ending)),
            restored = tokio::time::timeout(within, restored) => match restored {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(cause)) => cause,
                Err(_) => return Err(Cause::hypervisor("QEMU did not take its state in time")),
            },
        };
        // It ends by itself when a state does not fit, and says why.
        Err(self.last_words(process).await.unwrap_or(cause))
    }

    /// Why a QEMU ended whose sockets are closed; nothing if it has not.
    pub async fn last_words(&self, process: &Process) -> Option<Cause> {
        let ended = tokio::time::timeout(LAST_BREATH, process.ended()).await;
        ended.ok().map(|ending| self.failure(&ending))
    }

    /// Why a QEMU ended, in its own words.
    pub fn failure(&self, ending: &Ending) -> Cause {
        let words = log::last_words(&self.directory.log_tail(log::TAIL));
        Cause::hypervisor(match words {
            Some(words) => format!("QEMU {ending}: {words}"),
            None => format!("QEMU {ending} without a word"),
        })
    }
}

/// Connects to the control socket of the QEMU that listens there, new or not.
///
/// # Errors
///
/// Nobody listens or answers `within` that time.
pub(crate) async fn greet(
    directory: &Directory,
    within: Duration,
) -> Result<(Qmp, EventStream), QmpError> {
    let connect = async {
        let stream = UnixStream::connect(directory.short(QMP_SOCKET))
            .await
            .map_err(|error: io::Error| QmpError::Socket(Arc::new(error)))?;
        Qmp::connect(stream).await
    };
    tokio::time::timeout(within, connect)
        .await
        .unwrap_or_else(|_| Err(QmpError::Protocol("no greeting in time".into())))
}

fn refused(error: QmpError) -> Cause {
    Cause::because("QEMU did not take its state", error)
}
