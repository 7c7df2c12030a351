//! The serial port of a machine on a simulated ESXi host: it dials, answers what a host answers, and shows
//! the test what came, in order.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::concentrator::extension::{Direction, KNOWN, Message};
use crate::concentrator::telnet::{Event, Options, Parser, encode, option};

/// How long anything may take before the test fails.
pub const SOON: Duration = Duration::from_secs(20);

/// What the host says of the machine.
#[derive(Clone)]
pub struct Machine {
    pub vc: Option<[u8; 16]>,
    pub bios: Option<[u8; 16]>,
    pub binary: bool,
    pub knows: Vec<u8>,
}

impl Machine {
    /// A machine of vCenter's.
    pub fn of(byte: u8) -> Self {
        Self {
            vc: Some([byte; 16]),
            bios: Some([byte ^ 0x0f; 16]),
            binary: true,
            knows: KNOWN.to_vec(),
        }
    }
}

/// Which of the guest's bytes came before a message.
pub type Heard = (usize, Message);

pub struct Dialer {
    writer: Arc<AsyncMutex<OwnedWriteHalf>>,
    shared: Arc<Shared>,
    messages: AsyncMutex<mpsc::UnboundedReceiver<Heard>>,
    reading: JoinHandle<()>,
}

struct Shared {
    machine: Machine,
    data: Mutex<Vec<u8>>,
    grew: Notify,
    binary_out: AtomicBool,
    /// A host that is gone without its connection having ended.
    silent: AtomicBool,
    closed: AtomicBool,
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Dialer {
    /// Dials and offers the option, and says nothing else.
    pub async fn dial(address: SocketAddr, machine: Machine) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (reader, writer) = stream.into_split();
        let writer = Arc::new(AsyncMutex::new(writer));
        let (tell, messages) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            machine,
            data: Mutex::default(),
            grew: Notify::new(),
            binary_out: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let reading = tokio::spawn(read(reader, writer.clone(), shared.clone(), tell));
        Self {
            writer,
            shared,
            messages: AsyncMutex::new(messages),
            reading,
        }
    }

    /// Dials for a service and waits until the port is proxied and the UUID is told.
    pub async fn port(address: SocketAddr, machine: Machine, service: &str) -> Self {
        let dialer = Self::dial(address, machine).await;
        dialer.introduce().await;
        dialer
            .say(Message::DoProxy(Direction::Server, service.into()))
            .await;
        dialer.hear(|m| *m == Message::WillProxy).await;
        dialer
    }

    /// Tells the list of commands and waits for the concentrator's.
    pub async fn introduce(&self) {
        let list = self.shared.machine.knows.clone();
        self.say(Message::KnownSuboptions1(list)).await;
        self.hear(|m| matches!(m, Message::KnownSuboptions2(_)))
            .await;
    }

    /// Begins a migration; gives the cookie, and how many bytes the guest had been sent before.
    pub async fn begin(&self, sequence: &[u8]) -> (Vec<u8>, usize) {
        self.say(Message::VmotionBegin(sequence.to_vec())).await;
        let (at, message) = self
            .hear(|m| matches!(m, Message::VmotionGoahead(_) | Message::VmotionNotnow(_)))
            .await;
        match message {
            Message::VmotionGoahead(cookie) => {
                assert!(cookie.starts_with(sequence) && cookie.len() > sequence.len());
                (cookie, at)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Dials as the target of a migration, and waits until it is accepted.
    pub async fn target(address: SocketAddr, machine: Machine, cookie: &[u8]) -> Self {
        let dialer = Self::dial(address, machine).await;
        dialer.introduce().await;
        dialer.say(Message::VmotionPeer(cookie.to_vec())).await;
        let (_, answer) = dialer
            .hear(|m| matches!(m, Message::VmotionPeerOk(_)))
            .await;
        assert_eq!(answer, Message::VmotionPeerOk(cookie.to_vec()));
        dialer
    }

    pub async fn say(&self, message: Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.raw(&bytes).await.unwrap();
    }

    /// Sends the guest's bytes.
    pub async fn send(&self, data: &[u8]) {
        let mut bytes = Vec::new();
        encode(
            data,
            self.shared.binary_out.load(Ordering::SeqCst),
            &mut bytes,
        );
        self.raw(&bytes).await.unwrap();
    }

    pub async fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.lock().await.write_all(bytes).await
    }

    /// Waits for a message, past all others.
    pub async fn hear(&self, wanted: impl Fn(&Message) -> bool) -> Heard {
        let mut messages = self.messages.lock().await;
        let wait = async {
            loop {
                let heard = messages.recv().await.expect("the connection is open");
                if wanted(&heard.1) {
                    return heard;
                }
            }
        };
        timeout(SOON, wait).await.expect("the message comes")
    }

    /// Waits until the guest was sent `length` bytes in all, and gives them.
    pub async fn data(&self, length: usize) -> Vec<u8> {
        let wait = async {
            loop {
                let grew = self.shared.grew.notified();
                {
                    let data = self.shared.data.lock().unwrap();
                    if data.len() >= length {
                        return data.clone();
                    }
                }
                grew.await;
            }
        };
        timeout(SOON, wait).await.expect("the guest's bytes come")
    }

    /// What the guest was sent until now.
    pub fn data_now(&self) -> Vec<u8> {
        self.shared.data.lock().unwrap().clone()
    }

    /// Waits until the concentrator has closed the connection.
    pub async fn closed(&self) {
        let wait = async {
            loop {
                let grew = self.shared.grew.notified();
                if self.shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                grew.await;
            }
        };
        timeout(SOON, wait).await.expect("the connection is closed");
    }

    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// From now on nothing is answered.
    pub fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
    }

    /// Ends the connection, as a host does when the machine is off.
    pub async fn hang_up(&self) {
        self.writer.lock().await.shutdown().await.unwrap();
    }
}

async fn read(
    mut reader: OwnedReadHalf,
    writer: Arc<AsyncMutex<OwnedWriteHalf>>,
    shared: Arc<Shared>,
    tell: mpsc::UnboundedSender<Heard>,
) {
    let binary: &[u8] = if shared.machine.binary {
        &[option::BINARY]
    } else {
        &[]
    };
    let local = [&[option::SUPPRESS_GO_AHEAD, option::VMWARE], binary].concat();
    let remote = [&[option::SUPPRESS_GO_AHEAD, option::ECHO], binary].concat();
    let mut options = Options::new(&local, &remote);
    let mut parser = Parser::default();
    let mut buffer = vec![0; 8192];
    let mut out = vec![255, 251, 232];
    loop {
        if !out.is_empty() && !shared.silent.load(Ordering::SeqCst) {
            let _ = writer.lock().await.write_all(&out).await;
            out.clear();
        }
        let length = reader.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            break;
        }
        let mut input = &buffer[..length];
        loop {
            let event = parser
                .next(&mut input, options.other_does(option::BINARY))
                .unwrap();
            match event {
                None => break,
                Some(Event::Data(bytes)) => shared.data.lock().unwrap().extend_from_slice(bytes),
                Some(Event::Negotiation(verb, code)) => {
                    options.hear(verb, code, &mut out);
                    let does = options.does(option::BINARY);
                    shared.binary_out.store(does, Ordering::SeqCst);
                }
                Some(Event::Subnegotiation) => {
                    let message = Message::parse(&parser.subnegotiation()[1..]).unwrap();
                    match message {
                        Message::GetVmVcUuid => {
                            Message::VmVcUuid(shared.machine.vc).encode(&mut out)
                        }
                        Message::GetVmBiosUuid => {
                            Message::VmBiosUuid(shared.machine.bios).encode(&mut out);
                        }
                        _ => {}
                    }
                    let at = shared.data.lock().unwrap().len();
                    let _ = tell.send((at, message));
                }
            }
        }
        shared.grew.notify_waiters();
    }
    shared.closed.store(true, Ordering::SeqCst);
    shared.grew.notify_waiters();
}
