//! A process's handle and its three streams.

use crate::core::{Core, Life, Process, Shared};
use crate::{Answer, LinkError};
use bytes::Bytes;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tether_wire::message::{Exit, Output, ProcessId, Reply, Request, SignalTarget, TerminalSize};
use tokio::io::AsyncWrite;

/// A process in the guest. The streams are fields so that each can go to its own task.
#[derive(Debug)]
pub struct RunningProcess {
    /// Its name on the wire.
    pub id: ProcessId,
    /// Standard input; dropping it does not end the stream, [`InputWriter::finish`] does.
    pub stdin: InputWriter,
    /// Standard output, or everything a terminal shows.
    pub stdout: OutputReader,
    /// Standard error; at its end from the start for a terminal.
    pub stderr: OutputReader,
    /// Everything else.
    pub control: ProcessControl,
}

impl RunningProcess {
    pub(crate) fn new(shared: Arc<Shared>, id: ProcessId) -> Self {
        let reader = |output| OutputReader {
            shared: shared.clone(),
            process: id,
            output,
        };
        Self {
            id,
            stdin: InputWriter {
                shared: shared.clone(),
                process: id,
            },
            stdout: reader(Output::Stdout),
            stderr: reader(Output::Stderr),
            control: ProcessControl {
                shared,
                process: id,
            },
        }
    }

    /// See [`ProcessControl::wait`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait(&self) -> Result<Exit, LinkError> {
        self.control.wait().await
    }
}

/// Waits for a process, signals it, resizes its terminal. Clones speak of the same process.
#[derive(Clone, Debug)]
pub struct ProcessControl {
    shared: Arc<Shared>,
    process: ProcessId,
}

impl ProcessControl {
    /// Resolves when the process was reaped; its output may still be on its way.
    ///
    /// # Errors
    /// [`LinkError::Lost`] when its machine restarted, [`LinkError::Unknown`] when it was
    /// forgotten, or the link's end.
    pub async fn wait(&self) -> Result<Exit, LinkError> {
        let process = self.process;
        self.shared
            .when(|core| match core.processes.get(&process) {
                None => Some(Err(LinkError::Unknown(process))),
                Some(entry) => match entry.life {
                    Life::Running => None,
                    Life::Exited(exit) => Some(Ok(exit)),
                    Life::Lost => Some(Err(LinkError::Lost(process))),
                },
            })
            .await
    }

    /// Its pid in the machine's own pid namespace, once known.
    pub fn pid(&self) -> Option<u32> {
        self.shared.lock().processes.get(&self.process)?.pid
    }

    /// Sends a Linux signal, 1 to 64. Sent at once.
    pub fn signal(
        &self,
        signal: u8,
        target: SignalTarget,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        let process = self.process;
        self.ask(
            "signal",
            Request::Signal {
                process,
                signal,
                target,
            },
        )
    }

    /// Changes its terminal's size. Sent at once.
    pub fn resize(
        &self,
        size: TerminalSize,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        let process = self.process;
        self.ask("resize", Request::Resize { process, size })
    }

    /// Drops the guest's record of it. Only once its exit and both streams' ends are stored:
    /// after this nobody can ask again.
    ///
    /// # Errors
    /// The guest's `Busy` while it runs.
    pub fn forget(&self) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        let process = self.process;
        self.ask("forget", Request::Forget { process })
    }

    fn ask(
        &self,
        what: &'static str,
        request: Request,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        let answer = Answer::new(&self.shared, request);
        async move {
            match answer.await? {
                Reply::Done => Ok(()),
                _ => Err(LinkError::Nonsense(what)),
            }
        }
    }
}

/// Bytes of a stream. Each starts where the one before ended, unless the guest no longer has what
/// a former controller acknowledged and did not pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first byte in its stream.
    pub offset: u64,
    /// Never empty.
    pub data: Bytes,
}

impl Chunk {
    /// Offset of the byte after the last.
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// One output stream.
///
/// Bytes are handed out once, in order, and stay in the guest until they are said to be
/// [`stored`](Self::stored). Whoever neither reads nor stores stops the process when the guest's
/// buffer is full, and nobody else.
#[derive(Debug)]
pub struct OutputReader {
    shared: Arc<Shared>,
    process: ProcessId,
    output: Output,
}

impl OutputReader {
    /// The next bytes, as many as there are; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`LinkError::Lost`], [`LinkError::Unknown`], or the link's end.
    pub async fn next(&mut self) -> Result<Option<Chunk>, LinkError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for hand-written futures.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, LinkError>> {
        let mut core = self.shared.lock();
        let ended = core.ended();
        let Some(process) = core.processes.get_mut(&self.process) else {
            return Poll::Ready(Err(ended.unwrap_or(LinkError::Unknown(self.process))));
        };
        let lost = matches!(process.life, Life::Lost);
        let buffer = process.output(self.output);
        if let Some((offset, data)) = buffer.pop() {
            return Poll::Ready(Ok(Some(Chunk { offset, data })));
        }
        if buffer.ended {
            return Poll::Ready(Ok(None));
        }
        if lost {
            return Poll::Ready(Err(LinkError::Lost(self.process)));
        }
        if let Some(reason) = ended {
            return Poll::Ready(Err(reason));
        }
        buffer.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Everything below `offset` is safe on this side: the guest may drop it, and more may come.
    pub fn stored(&self, offset: u64) {
        self.shared
            .lock()
            .session
            .stored(self.process, self.output, offset);
        self.shared.outbound.notify_one();
    }

    /// Nobody wants the rest: it is acknowledged as it comes and thrown away.
    pub fn discard(self) {
        let mut core = self.shared.lock();
        let Some(process) = core.processes.get_mut(&self.process) else {
            return;
        };
        let offset = process.output(self.output).discard();
        core.session.stored(self.process, self.output, offset);
        drop(core);
        self.shared.outbound.notify_one();
    }
}

/// Standard input.
///
/// A write is accepted into a bounded buffer of the session and reaches the process in order,
/// also across reconnects. Also an [`AsyncWrite`], whose shutdown is the half-close.
#[derive(Debug)]
pub struct InputWriter {
    shared: Arc<Shared>,
    process: ProcessId,
}

impl InputWriter {
    /// Takes at least one byte of `data` and says how many. Cancel safe.
    ///
    /// # Errors
    /// `BrokenPipe` when the process is gone, `NotConnected` when the link has ended.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_input(cx, data)).await
    }

    /// Takes all of `data`. When dropped midway an unknown part was taken.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let count = self.write(data).await?;
            data = &data[count..];
        }
        Ok(())
    }

    /// Ends the stream after what was written (half-close).
    pub fn finish(self) {
        self.end();
    }

    fn end(&self) {
        self.shared.lock().session.end_input(self.process);
        self.shared.outbound.notify_one();
    }

    fn poll_input(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut guard = self.shared.lock();
        let core: &mut Core = &mut guard;
        if let Some(reason) = core.ended() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, reason)));
        }
        let Some(process) = live(core.processes.get_mut(&self.process)) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        match core.session.write_input(self.process, data) {
            0 => {
                process.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            count => {
                drop(guard);
                self.shared.outbound.notify_one();
                Poll::Ready(Ok(count))
            }
        }
    }
}

fn live(process: Option<&mut Process>) -> Option<&mut Process> {
    process.filter(|process| matches!(process.life, Life::Running))
}

impl AsyncWrite for InputWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_input(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}
