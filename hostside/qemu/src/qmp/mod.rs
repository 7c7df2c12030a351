//! QMP, QEMU's control protocol: one JSON object a line.
//!
//! One task owns the connection. Commands are numbered and may be in flight
//! together; a caller that stops waiting harms nobody. QEMU is treated as
//! hostile: a line is bounded, what does not parse ends the connection, and
//! what is not understood is ignored.
//!
//! Source: QEMU's `docs/interop/qmp-spec` and `qapi/*.json`, version 7.2.

mod event;

pub use event::Event;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

/// The longest line taken from QEMU. The longest it has reason to send is a
/// console ring in base64.
const LINE_LIMIT: usize = 4 << 20;

/// Commands waiting to be sent before callers wait too.
const QUEUE: usize = 32;

/// Why a command has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// The connection ended, with or without QEMU.
    #[error("QEMU closed its control socket")]
    Closed,
    /// QEMU sent something that is not QMP.
    #[error("QEMU's control socket said something that is not QMP: {0}")]
    Protocol(Arc<str>),
    /// QEMU is there and does not answer.
    #[error("QEMU did not answer {command} within {} s", PATIENCE.as_secs())]
    Silent {
        /// The command.
        command: &'static str,
    },
    /// The socket failed.
    #[error("QEMU's control socket failed: {0}")]
    Socket(Arc<std::io::Error>),
}

/// How long an answer may take. QEMU's main loop answers at once unless it is
/// stuck in the host's storage.
const PATIENCE: Duration = Duration::from_secs(60);

type Reply = Result<Value, QmpError>;

struct Request {
    command: &'static str,
    arguments: Value,
    reply: oneshot::Sender<Reply>,
}

/// A connection to one QEMU. Clones share it; it closes with the last one.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
}

/// Events, in order. Ends when the connection does.
pub type EventStream = mpsc::UnboundedReceiver<Event>;

impl Qmp {
    /// Takes the greeting, negotiates, and starts the task that owns the
    /// connection.
    ///
    /// # Errors
    ///
    /// [`QmpError`], when the other end is not a QEMU or goes away.
    pub async fn connect<S>(stream: S) -> Result<(Self, EventStream), QmpError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, mut write) = tokio::io::split(stream);
        let mut lines = Lines {
            read: BufReader::new(read),
            line: Vec::new(),
        };
        let greeting = lines.object().await?.ok_or(QmpError::Closed)?;
        if !greeting.contains_key("QMP") {
            return Err(protocol("no greeting", &greeting));
        }
        write
            .write_all(b"{\"execute\":\"qmp_capabilities\",\"id\":0}\n")
            .await
            .map_err(socket)?;
        loop {
            let object = lines.object().await?.ok_or(QmpError::Closed)?;
            if object.contains_key("return") {
                break;
            }
            if !object.contains_key("event") {
                return Err(protocol("capabilities refused", &object));
            }
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        // Only events that are rare by nature are passed on (see `Event`), so
        // this cannot grow by what a guest does.
        let (events, stream) = mpsc::unbounded_channel();
        tokio::spawn(own(lines, write, queue, events));
        Ok((Self { requests }, stream))
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn execute(&self, command: &'static str, arguments: Value) -> Reply {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            arguments,
            reply,
        };
        let answered = async {
            self.requests
                .send(request)
                .await
                .map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)?
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .unwrap_or(Err(QmpError::Silent { command }))
    }

    /// [`Self::execute`] of a command without arguments.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn ask(&self, command: &'static str) -> Reply {
        self.execute(command, Value::Null).await
    }

    /// Runs a line of the human monitor, and gives what it prints.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn monitor(&self, line: &str) -> Result<String, QmpError> {
        let arguments = serde_json::json!({"command-line": line});
        let answer = self.execute("human-monitor-command", arguments).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// The state QEMU says the machine is in (`RunState` of
    /// `qapi/run-state.json`).
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn run_state(&self) -> Result<RunState, QmpError> {
        let status = self.ask("query-status").await?;
        match status.get("status").and_then(Value::as_str) {
            Some("shutdown") => Ok(RunState::Shutdown),
            Some("guest-panicked") => Ok(RunState::Panicked),
            Some("internal-error") => Ok(RunState::InternalError),
            Some("inmigrate") => Ok(RunState::Incoming),
            Some(_) if status.get("running") == Some(&Value::Bool(true)) => Ok(RunState::Running),
            Some(_) => Ok(RunState::Stopped),
            None => Err(QmpError::Protocol("query-status without a status".into())),
        }
    }
}

/// QEMU's run states, as far as they differ to this driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Virtual CPUs run.
    Running,
    /// Virtual CPUs do not run, and could.
    Stopped,
    /// It waits for the state it is to begin with.
    Incoming,
    /// The guest powered off or reset; `-action` made QEMU keep it.
    Shutdown,
    /// The guest panicked; `-action` made QEMU keep it.
    Panicked,
    /// The accelerator failed.
    InternalError,
}

/// Owns the connection until it ends or nobody holds a [`Qmp`] any more.
async fn own<R, W>(
    mut lines: Lines<R>,
    mut write: W,
    mut queue: mpsc::Receiver<Request>,
    events: mpsc::UnboundedSender<Event>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut pending: HashMap<u64, (&'static str, oneshot::Sender<Reply>)> = HashMap::new();
    let mut next_id = 1u64;
    let end = loop {
        tokio::select! {
            object = lines.object() => match object {
                Ok(Some(mut object)) => {
                    if let Some(name) = object.get("event").and_then(Value::as_str) {
                        if let Some(event) = Event::parse(name, object.get("data")) {
                            let _ = events.send(event);
                        }
                        continue;
                    }
                    let Some((command, reply)) =
                        object.get("id").and_then(Value::as_u64).and_then(|id| pending.remove(&id))
                    else {
                        // An answer to nothing that was asked.
                        tracing::debug!("QEMU answered what nobody asked");
                        continue;
                    };
                    let _ = reply.send(match object.remove("return") {
                        Some(value) => Ok(value),
                        None => Err(refusal(command, object.get("error"))),
                    });
                }
                Ok(None) => break QmpError::Closed,
                Err(error) => break error,
            },
            request = queue.recv() => {
                let Some(Request { command, arguments, reply }) = request else { return };
                let mut object = Map::new();
                object.insert("execute".into(), command.into());
                if !arguments.is_null() {
                    object.insert("arguments".into(), arguments);
                }
                object.insert("id".into(), next_id.into());
                let mut line = Value::Object(object).to_string();
                line.push('\n');
                // QEMU reads commands whatever else it does; a write this small
                // that does not finish means a QEMU that is gone or stuck.
                if let Err(error) = write.write_all(line.as_bytes()).await {
                    let error = socket(error);
                    let _ = reply.send(Err(error.clone()));
                    break error;
                }
                pending.insert(next_id, (command, reply));
                next_id += 1;
            }
        }
    };
    for (_, (_, reply)) in pending {
        let _ = reply.send(Err(end.clone()));
    }
    queue.close();
    while let Some(request) = queue.recv().await {
        let _ = request.reply.send(Err(end.clone()));
    }
}

fn refusal(command: &'static str, error: Option<&Value>) -> QmpError {
    let text = |key| {
        let text = error
            .and_then(|e| e.get(key))
            .and_then(Value::as_str)
            .unwrap_or("no reason given");
        text.chars().take(2000).collect::<String>()
    };
    QmpError::Refused {
        command,
        class: text("class"),
        description: text("desc"),
    }
}

fn socket(error: std::io::Error) -> QmpError {
    match error.kind() {
        // A process that ends with unread input resets its sockets.
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => QmpError::Closed,
        _ => QmpError::Socket(Arc::new(error)),
    }
}

fn protocol(what: &str, object: &Map<String, Value>) -> QmpError {
    let said = Value::Object(object.clone()).to_string();
    let said: String = said.chars().take(200).collect();
    QmpError::Protocol(format!("{what}: {said}").into())
}

/// Lines of a bounded length, each a JSON object. Cancel safe: what was read
/// of a line is kept.
struct Lines<R> {
    read: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn object(&mut self) -> Result<Option<Map<String, Value>>, QmpError> {
        loop {
            let available = self.read.fill_buf().await.map_err(socket)?;
            if available.is_empty() {
                return Ok(None);
            }
            let newline = available.iter().position(|b| *b == b'\n');
            let taken = newline.map_or(available.len(), |at| at + 1);
            if self.line.len() + taken > LINE_LIMIT {
                return Err(QmpError::Protocol("a line without end".into()));
            }
            self.line.extend_from_slice(&available[..taken]);
            self.read.consume(taken);
            if newline.is_some() {
                let object = serde_json::from_slice(&self.line);
                self.line.clear();
                if self.line.capacity() > 64 << 10 {
                    self.line = Vec::new();
                }
                return match object {
                    Ok(Value::Object(object)) => Ok(Some(object)),
                    Ok(_) => Err(QmpError::Protocol("a line that is no object".into())),
                    Err(error) => Err(QmpError::Protocol(error.to_string().into())),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::DuplexStream;

    const GREETING: &str =
        r#"{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22}},"capabilities":["oob"]}}"#;

    /// A QEMU written by the test: the greeting has been exchanged.
    async fn connected() -> (
        Qmp,
        EventStream,
        tokio::io::Lines<BufReader<tokio::io::ReadHalf<DuplexStream>>>,
        tokio::io::WriteHalf<DuplexStream>,
    ) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (read, mut write) = tokio::io::split(theirs);
        let mut lines = BufReader::new(read).lines();
        let (connection, ()) = tokio::join!(Qmp::connect(ours), async {
            write
                .write_all(format!("{GREETING}\n").as_bytes())
                .await
                .unwrap();
            let negotiation = lines.next_line().await.unwrap().unwrap();
            assert!(negotiation.contains("qmp_capabilities"));
            write
                .write_all(b"{\"return\":{},\"id\":0}\n")
                .await
                .unwrap();
        });
        let (qmp, events) = connection.unwrap();
        (qmp, events, lines, write)
    }

    async fn respond(
        lines: &mut tokio::io::Lines<BufReader<tokio::io::ReadHalf<DuplexStream>>>,
        write: &mut tokio::io::WriteHalf<DuplexStream>,
        answer: impl Fn(&str, u64) -> Value,
    ) {
        let line = lines.next_line().await.unwrap().unwrap();
        let request: Value = serde_json::from_str(&line).unwrap();
        let answer = answer(
            request["execute"].as_str().unwrap(),
            request["id"].as_u64().unwrap(),
        );
        write
            .write_all(format!("{answer}\r\n").as_bytes())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order() {
        let (qmp, _events, mut lines, mut write) = connected().await;
        let (a, b, ()) = tokio::join!(qmp.ask("query-name"), qmp.ask("query-uuid"), async {
            let mut ids = Vec::new();
            for _ in 0..2 {
                let request: Value =
                    serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
                ids.push((
                    request["id"].as_u64().unwrap(),
                    request["execute"].as_str().unwrap().to_owned(),
                ));
            }
            for (id, name) in ids.into_iter().rev() {
                write
                    .write_all(format!("{}\n", json!({"id": id, "return": name})).as_bytes())
                    .await
                    .unwrap();
            }
        });
        assert_eq!(a.unwrap(), "query-name");
        assert_eq!(b.unwrap(), "query-uuid");
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let (qmp, _events, mut lines, mut write) = connected().await;
        let (answer, ()) = tokio::join!(
            qmp.ask("cont"),
            respond(
                &mut lines,
                &mut write,
                |_, id| json!({"id": id, "error": {"class": "GenericError", "desc": "no"}})
            )
        );
        assert_eq!(answer.unwrap_err().to_string(), "QEMU refused cont: no");
    }

    #[tokio::test]
    async fn a_caller_that_stops_waiting_harms_nobody() {
        let (qmp, _events, mut lines, mut write) = connected().await;
        {
            let abandoned = qmp.ask("stop");
            tokio::pin!(abandoned);
            tokio::select! {
                biased;
                _ = &mut abandoned => panic!("nobody answered"),
                line = lines.next_line() => assert!(line.unwrap().unwrap().contains("stop")),
            }
        }
        write
            .write_all(b"{\"id\":1,\"return\":{}}\n")
            .await
            .unwrap();
        let (answer, ()) = tokio::join!(
            qmp.run_state(),
            respond(
                &mut lines,
                &mut write,
                |_, id| json!({"id": id, "return": {"status": "paused", "running": false}})
            )
        );
        assert_eq!(answer.unwrap(), RunState::Stopped);
    }

    #[tokio::test]
    async fn the_end_of_qemu_ends_every_wait() {
        let (qmp, mut events, lines, write) = connected().await;
        let (answer, ()) = tokio::join!(qmp.ask("query-status"), async {
            let mut lines = lines;
            lines.next_line().await.unwrap();
            drop((lines, write));
        });
        assert!(matches!(answer, Err(QmpError::Closed)), "{answer:?}");
        assert!(events.recv().await.is_none());
        assert!(qmp.ask("query-status").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_qemu_that_does_not_answer_is_not_waited_for_for_ever() {
        let (qmp, _events, _lines, _write) = connected().await;
        let answer = qmp.ask("query-status").await;
        assert!(matches!(answer, Err(QmpError::Silent { .. })), "{answer:?}");
    }

    #[tokio::test]
    async fn events_arrive_in_order_and_unknown_ones_do_not() {
        let (_qmp, mut events, _lines, mut write) = connected().await;
        for line in [
            r#"{"event":"STOP","timestamp":{"seconds":1,"microseconds":2}}"#,
            r#"{"event":"RTC_CHANGE","data":{"offset":3}}"#,
            r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#,
        ] {
            write
                .write_all(format!("{line}\n").as_bytes())
                .await
                .unwrap();
        }
        assert_eq!(events.recv().await, Some(Event::Stop));
        assert!(matches!(events.recv().await, Some(Event::Shutdown { .. })));
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_refused() {
        for hello in [
            "hello\n",
            "[]\n",
            "{}\n",
            "{\"QMP\":{}}\n{\"error\":{}}\n",
            "",
        ] {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (connection, ()) = tokio::join!(Qmp::connect(ours), async {
                let (_read, mut write) = tokio::io::split(theirs);
                write.write_all(hello.as_bytes()).await.unwrap();
            });
            assert!(connection.is_err(), "{hello:?} was taken for a QEMU");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_off() {
        let (qmp, mut events, _lines, mut write) = connected().await;
        let chunk = vec![b'x'; 1 << 16];
        for _ in 0..=(LINE_LIMIT / chunk.len()) {
            if write.write_all(&chunk).await.is_err() {
                break;
            }
        }
        assert!(events.recv().await.is_none());
        assert!(qmp.ask("stop").await.is_err());
    }
}
