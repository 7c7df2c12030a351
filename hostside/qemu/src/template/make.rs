//! Making a template: a machine boots, says that tether is ready, and is frozen.
//!
//! Its console is a socket that is read here: tether's word on it is waited for, and what the kernel
//! said is in the error when that does not come. Nobody ever opens its channel.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use hypervisor::{Boot, Cause, ChannelKey, MachineSpec, TemplateId};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use super::record::{STATE_LIMIT, Sealed};
use super::{Inputs, NEW, TemplateRecord, Templates, at};
use crate::accel::Accelerator;
use crate::argv::{Birth, KERNEL_HEAD, KEY_FILE, Wire};
use crate::directory::{CHANNEL_SOCKET, Directory, LOG, QMP_SOCKET};
use crate::driver::Options;
use crate::process::{Lifetime, Process};
use crate::qmp::{Event, EventStream, Qmp, QmpError};
use crate::start::{Starter, Wanted};
use crate::tsc::Measurement;

/// What tether says when it can be frozen (`tether/agent/src/boot.rs`).
const READY: &[u8] = b"tether: template ready";
/// How long it may take to say so. Busy hosts emulate slowly.
const BOOT: Duration = Duration::from_secs(120);
/// How long freezing may take.
const FREEZE: Duration = Duration::from_secs(60);
/// Where QEMU sends the state.
const STATE_SOCKET: &str = "state.sock";
/// Bytes of console kept.
const CONSOLE: usize = 64 << 10;

impl Templates {
    /// Makes a template. Its lock is held; nothing of it is there.
    pub(super) async fn make(
        &self,
        id: &TemplateId,
        inputs: &Inputs,
        model: &MachineSpec,
        options: &Options,
        tsc: Measurement,
    ) -> Result<(), Cause> {
        let begun = Instant::now();
        let new = self.directory.join(format!("{NEW}{id}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&new)
            .map_err(at("cannot make directory", &new))?;
        let mut spec = model.clone();
        spec.id = TemplateRecord::machine_id(id);
        let made = freeze(&new, &spec, options, tsc).await;
        let whole = made.and_then(|(state, qemu)| {
            let write = |name: &str, content: &[u8]| {
                let path = new.join(name);
                std::fs::write(&path, content).map_err(at("cannot write", &path))
            };
            let kernel = kernel_head(&spec)?;
            write("state", &state)?;
            write("kernel", &kernel)?;
            for name in [QMP_SOCKET, CHANNEL_SOCKET, STATE_SOCKET, KEY_FILE, LOG] {
                let path = new.join(name);
                std::fs::remove_file(&path).map_err(at("cannot remove", &path))?;
            }
            let record = TemplateRecord {
                id: id.clone(),
                spec: model.clone(),
                inputs: inputs.clone(),
                qemu,
                created: SystemTime::now(),
                took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                ram: TemplateRecord::memory(&new.join("ram"))?,
                state: Sealed::of(&state),
                kernel: Sealed::of(&kernel),
            };
            record.write(&new)?;
            std::fs::rename(&new, self.home(id)).map_err(at("cannot rename", &new))
        });
        if whole.is_err() {
            let _ = std::fs::remove_dir_all(&new);
        }
        whole
    }
}

/// What QEMU reads of a kernel that nothing runs: its head; nothing, where there is no kernel.
///
/// # Errors
///
/// [`Cause::File`].
pub(crate) fn kernel_head(spec: &MachineSpec) -> Result<Vec<u8>, Cause> {
    let Boot::Kernel { kernel, .. } = &spec.boot else {
        return Ok(Vec::new());
    };
    let mut head = Vec::new();
    File::open(kernel)
        .and_then(|file| file.take(KERNEL_HEAD).read_to_end(&mut head))
        .map_err(at("cannot read", kernel))?;
    Ok(head)
}

/// Boots the machine in `home` and takes its state; its memory is in the file `ram`. Says QEMU's
/// version, too.
async fn freeze(
    home: &Path,
    spec: &MachineSpec,
    options: &Options,
    tsc: Measurement,
) -> Result<(Vec<u8>, String), Cause> {
    let directory = Directory::open(home.to_owned())?;
    let create = |name: &str| {
        let path = directory.file(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(at("cannot create", &path))
    };
    let ram = create("ram")?;
    ram.set_len(spec.memory.bytes())
        .map_err(at("cannot size", &directory.file("ram")))?;
    // The key of nobody: a template holds no secret.
    let key = directory.file(KEY_FILE);
    std::fs::write(&key, ChannelKey::from_bytes([0; 32]).as_bytes())
        .map_err(at("cannot write", &key))?;
    let log = create(LOG)?;
    let starter = Starter {
        directory: &directory,
        options,
    };
    let channel = starter.listen(CHANNEL_SOCKET)?;
    let socket = |source| Cause::because("cannot make a socket for a template", source);
    let (console, theirs) = StdStream::pair().map_err(socket)?;
    let process = starter.start(Wanted {
        spec,
        log: &log,
        lifetime: Lifetime::Ours,
        channel: Wire::Listener {
            fd: channel.as_raw_fd(),
        },
        birth: Birth::Template {
            ram_fd: ram.as_raw_fd(),
            console_fd: theirs.as_raw_fd(),
        },
        inherited: vec![channel.as_fd(), ram.as_fd(), theirs.as_fd()],
        tsc_khz: match options.accelerator {
            Accelerator::Tcg => tsc.khz().await,
            Accelerator::Kvm => None,
        },
        uefi_code: None,
    })?;
    drop((channel, theirs));
    let state = Booting {
        starter,
        process: &process,
    }
    .frozen(console)
    .await;
    if state.is_err() {
        process.kill().await;
    }
    state
}

/// A template that is not one yet.
struct Booting<'a> {
    starter: Starter<'a>,
    process: &'a Process,
}

impl Booting<'_> {
    async fn frozen(&self, console: StdStream) -> Result<(Vec<u8>, String), Cause> {
        let (qmp, mut events) = self
            .starter
            .greeted(self.process)
            .await
            .map_err(of_template)?;
        self.ready(console, &mut events).await?;
        let taken = async {
            let version = version(&qmp).await.map_err(refused)?;
            let state = self.state(&qmp, &mut events).await?;
            let quit = async {
                let _ = qmp.ask("quit").await;
                self.process.ended().await
            };
            quit.await;
            Ok((state, version))
        };
        tokio::time::timeout(FREEZE, taken)
            .await
            .unwrap_or_else(|_| Err(Cause::hypervisor("QEMU did not freeze the template")))
    }

    /// Waits for tether's word.
    async fn ready(&self, console: StdStream, events: &mut EventStream) -> Result<(), Cause> {
        let socket = |source| Cause::because("cannot read a template's console", source);
        console.set_nonblocking(true).map_err(socket)?;
        let mut console = UnixStream::from_std(console).map_err(socket)?;
        let mut said: Vec<u8> = Vec::new();
        let mut buffer = vec![0; 4096];
        let deadline = tokio::time::sleep(BOOT);
        tokio::pin!(deadline);
        let why = loop {
            tokio::select! {
                biased;
                read = console.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return Err(self.ended().await),
                    Ok(length) => {
                        said.extend_from_slice(&buffer[..length]);
                        if said.windows(READY.len()).any(|window| window == READY) {
                            return Ok(());
                        }
                        let excess = said.len().saturating_sub(CONSOLE);
                        said.drain(..excess);
                    }
                },
                event = events.recv() => match event {
                    Some(Event::Shutdown { .. } | Event::GuestPanicked) => {
                        break "its guest ended".to_owned();
                    }
                    Some(_) => {}
                    None => return Err(self.ended().await),
                },
                () = &mut deadline => {
                    break format!("its tether was not ready in {} s", BOOT.as_secs());
                }
            }
        };
        let said = String::from_utf8_lossy(&said);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().map(str::trim_end).collect();
        Err(Cause::hypervisor(format!(
            "a template did not come up: {why}; its console ends with {:?}",
            last.join("; ")
        )))
    }

    /// Freezes it and takes its state.
    async fn state(&self, qmp: &Qmp, events: &mut EventStream) -> Result<Vec<u8>, Cause> {
        let path = self.starter.directory.file(STATE_SOCKET);
        let listener = UnixListener::bind(self.starter.directory.short(STATE_SOCKET))
            .map_err(at("cannot listen on", &path))?;
        qmp.ask("stop").await.map_err(refused)?;
        prepare(qmp).await.map_err(refused)?;
        // QEMU runs in the directory.
        let arguments = json!({"uri": format!("unix:{STATE_SOCKET}")});
        qmp.execute("migrate", arguments).await.map_err(refused)?;
        let mut state = Vec::new();
        let taken = async {
            let (stream, _) = listener.accept().await?;
            stream.take(STATE_LIMIT).read_to_end(&mut state).await
        };
        let failed = at("cannot take the state from", &path);
        let (read, arrived) = tokio::join!(taken, arrived(events));
        arrived?;
        if read.map_err(failed)? as u64 >= STATE_LIMIT {
            return Err(Cause::hypervisor(
                "QEMU sent more state than a template has",
            ));
        }
        Ok(state)
    }

    /// Why its QEMU ended, which has closed its sockets.
    async fn ended(&self) -> Cause {
        match self.starter.last_words(self.process).await {
            Some(cause) => of_template(cause),
            None => Cause::hypervisor("a template's QEMU closed its sockets and goes on"),
        }
    }
}

/// What is said of a QEMU, said of a template's.
fn of_template(cause: Cause) -> Cause {
    match cause {
        Cause::Hypervisor { message, source } => Cause::Hypervisor {
            message: format!("a template's {message}"),
            source,
        },
        other => other,
    }
}

/// Makes a QEMU send or take state without the memory, and say how far it is.
pub(crate) async fn prepare(qmp: &Qmp) -> Result<(), QmpError> {
    let on = |capability: &str| json!({"capability": capability, "state": true});
    let capabilities = json!({"capabilities": [on("events"), on("x-ignore-shared")]});
    qmp.execute("migrate-set-capabilities", capabilities)
        .await
        .map(drop)
}

/// Waits until the state has come to its other end.
pub(crate) async fn arrived(events: &mut EventStream) -> Result<(), Cause> {
    loop {
        match events.recv().await {
            Some(Event::Migration { status }) => match status.as_str() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    return Err(Cause::hypervisor(format!(
                        "the state's way to or from QEMU {status}"
                    )));
                }
                _ => {}
            },
            Some(_) => {}
            None => return Err(refused(QmpError::Closed)),
        }
    }
}

async fn version(qmp: &Qmp) -> Result<String, QmpError> {
    let answer = qmp.ask("query-version").await?;
    let number = |key: &str| answer["qemu"][key].as_u64().unwrap_or(0);
    Ok(format!(
        "{}.{}.{}{}",
        number("major"),
        number("minor"),
        number("micro"),
        answer["package"].as_str().unwrap_or_default()
    ))
}

fn refused(error: QmpError) -> Cause {
    Cause::because("QEMU did not make a template", error)
}
