//! One connection of an ESXi host: telnet over any byte stream, from negotiation to its end.
//!
//! First it has to say whose it is, within a bounded time: DO-PROXY with a service that is served here, and
//! either the machine's UUID (a fork's is in the service URI) or the cookie of a migration. Then it moves bytes for its [`Session`].

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use super::extension::{
    GET_VM_BIOS_UUID, GET_VM_VC_UUID, KNOWN, Message, VMOTION_PEER, named_machine, service_name,
};
use super::registry::{Claim, Key, Pending, Registry, Seat, Shown};
use super::session::{ConnectionId, Role, TooMuchAhead};
use super::telnet::{Event, Options, Parser, TooLong, encode, option};

/// Bytes asked of the connection at once.
const READ: usize = 16 << 10;
/// Encoded bytes that wait for the connection, above which none are added for the guest.
const OUT: usize = 16 << 10;
/// The same, above which nothing is read: only answers to a flood of questions get there.
const OUT_MAX: usize = 64 << 10;
/// Guest bytes that may come before it is known whose they are.
const EARLY: usize = 64 << 10;

/// Why a connection was closed from this side.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    TooMuchAhead(#[from] TooMuchAhead),
    #[error("it does not speak VMware's telnet option")]
    NotVmware,
    #[error("it asked for the service {0:?}, which is not served here")]
    Service(String),
    #[error("it did not say in time which machine's it is")]
    Unidentified,
    #[error("it sent {EARLY} bytes before it said which machine's they are")]
    Early,
    #[error("machine {0} is connected, and answers")]
    Taken(Shown),
    #[error("its migration is not known here")]
    Secret,
    #[error("nobody asked for machine {0} in time")]
    Unclaimed(Shown),
    #[error("the source of the migration is gone, and the target did not complete it")]
    Incomplete,
}

/// Serves one connection to its end. `stream` is what telnet runs over: TCP, or TLS on it for `telnets`.
pub async fn serve<S>(registry: Arc<Registry>, stream: S, address: SocketAddr, pending: Pending)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let id = registry.next_connection();
    let mut line = Line::new(stream);
    let result = match identify(&registry, &mut line, id).await {
        Ok(seat) => run(&registry, &mut line, &seat, pending).await,
        Err(refusal) => Err(refusal),
    };
    match result {
        Ok(()) => debug!(%address, id, "a serial port's connection ended"),
        Err(Refusal::Io(error)) => debug!(%address, id, %error, "a serial port's connection broke"),
        Err(refusal) => warn!(%address, id, %refusal, "closing a serial port's connection"),
    }
    // A last answer, such as WONT-PROXY.
    let _ = timeout(registry.limits().farewell, line.finish()).await;
}

/// The telnet of one connection: what was read and not understood yet, what was said and not sent yet.
struct Line<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    parser: Parser,
    options: Options,
    input: Vec<u8>,
    at: usize,
    /// Guest bytes that came before the last message.
    data: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    unflushed: bool,
    /// The machine's commands.
    known: Vec<u8>,
    refused: bool,
}

impl<S: AsyncRead + AsyncWrite + Send> Line<S> {
    fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        // An end that would echo is told that this one does, and is never let.
        let mut options = Options::new(
            &[option::BINARY, option::SUPPRESS_GO_AHEAD, option::ECHO],
            &[option::BINARY, option::SUPPRESS_GO_AHEAD, option::VMWARE],
        );
        let mut out = Vec::new();
        options.ask(&mut out);
        Self {
            reader,
            writer,
            parser: Parser::default(),
            options,
            input: Vec::new(),
            at: 0,
            data: Vec::new(),
            out,
            sent: 0,
            unflushed: false,
            known: Vec::new(),
            refused: false,
        }
    }

    /// The next message in what was read; what the guest sent before it is in `data`. `None` when all was
    /// understood.
    fn parse(&mut self) -> Result<Option<Message>, TooLong> {
        let mut rest = &self.input[self.at..];
        loop {
            let binary = self.options.other_does(option::BINARY);
            let event = self.parser.next(&mut rest, binary);
            self.at = self.input.len() - rest.len();
            match event? {
                None => {
                    self.input.clear();
                    self.at = 0;
                    return Ok(None);
                }
                Some(Event::Data(bytes)) => self.data.extend_from_slice(bytes),
                Some(Event::Negotiation(verb, option)) => {
                    self.options.hear(verb, option, &mut self.out);
                    use super::telnet::Verb::Wont;
                    self.refused |= verb == Wont && option == option::VMWARE;
                }
                Some(Event::Subnegotiation) => {
                    if let Some((&option::VMWARE, content)) =
                        self.parser.subnegotiation().split_first()
                        && let Some(message) = Message::parse(content)
                    {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    fn say(&mut self, message: &Message) {
        message.encode(&mut self.out);
    }

    /// Asks for a UUID; where the machine does not know the question, the answer is that it has none.
    fn ask(&mut self, question: u8) -> Option<Option<[u8; 16]>> {
        if !self.known.contains(&question) {
            return Some(None);
        }
        self.say(match question {
            GET_VM_VC_UUID => &Message::GetVmVcUuid,
            _ => &Message::GetVmBiosUuid,
        });
        None
    }

    fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends some of what is to be sent. Nothing is lost when the future is dropped.
    async fn send(writer: &mut WriteHalf<S>, out: &[u8]) -> io::Result<usize> {
        if out.is_empty() {
            writer.flush().await.map(|()| 0)
        } else {
            writer.write(out).await
        }
    }

    fn was_sent(&mut self, length: usize) -> io::Result<()> {
        if length == 0 && self.unsent() > 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = length > 0;
        self.sent += length;
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// Waits until something was read or sent; `false` at the end of the stream.
    async fn turn(&mut self, may_read: bool) -> io::Result<bool> {
        let (out, input) = (&self.out[self.sent..], &mut self.input);
        let may_read = may_read && out.len() <= OUT_MAX;
        let may_send = !out.is_empty() || self.unflushed;
        input.reserve(READ);
        tokio::select! {
            read = self.reader.read_buf(input), if may_read => Ok(read? > 0),
            sent = Self::send(&mut self.writer, out), if may_send => {
                let sent = sent?;
                self.was_sent(sent).map(|()| true)
            }
            else => std::future::pending().await,
        }
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.out[self.sent..]).await?;
        self.writer.shutdown().await
    }
}

/// Learns whose the connection is, and takes its place.
async fn identify<S>(
    registry: &Arc<Registry>,
    line: &mut Line<S>,
    id: ConnectionId,
) -> Result<Seat, Refusal>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let deadline = Instant::now() + registry.limits().identify;
    let (mut service, mut named, mut vc, mut bios) = (None, None, None, None);
    loop {
        while let Some(message) = line.parse()? {
            match message {
                Message::KnownSuboptions1(list) => {
                    line.say(&Message::KnownSuboptions2(KNOWN.to_vec()));
                    line.known = list;
                    vc = line.ask(GET_VM_VC_UUID).or(vc);
                    bios = line.ask(GET_VM_BIOS_UUID).or(bios);
                }
                Message::DoProxy(_, uri) => match registry.service(service_name(&uri)) {
                    Some(index) => {
                        line.say(&Message::WillProxy);
                        service = Some(index);
                        named = named_machine(&uri);
                    }
                    None => {
                        line.say(&Message::WontProxy);
                        return Err(Refusal::Service(uri));
                    }
                },
                Message::VmVcUuid(uuid) => vc = Some(uuid),
                Message::VmBiosUuid(uuid) => bios = Some(uuid),
                // A machine without one of the UUIDs may not know the question either.
                Message::UnknownSuboption1(GET_VM_VC_UUID) => vc = Some(None),
                Message::UnknownSuboption1(GET_VM_BIOS_UUID) => bios = Some(None),
                Message::VmotionPeer(cookie) => {
                    let Some(seat) = registry.take_peer_seat(&cookie, id) else {
                        line.say(&Message::UnknownSuboption2(VMOTION_PEER));
                        return Err(Refusal::Secret);
                    };
                    debug!(id, machine = %seat.shown(), "the target of a migration is connected");
                    // The sequence with the secret, as concentrators in use answer; VMware's text has the
                    // sequence alone, which the answer begins with.
                    line.say(&Message::VmotionPeerOk(cookie));
                    return Ok(seat);
                }
                Message::VmotionBegin(sequence) => line.say(&Message::VmotionNotnow(sequence)),
                Message::Unknown(code) => line.say(&Message::UnknownSuboption2(code)),
                _ => {}
            }
            // What its URI says is what this side wrote into its backing.
            let vc = named.map(Some).or(vc);
            if let Some(seat) = seat(registry, id, service, vc, bios, false).await? {
                return Ok(seat);
            }
        }
        if line.refused {
            return Err(Refusal::NotVmware);
        }
        if line.data.len() > EARLY {
            return Err(Refusal::Early);
        }
        match timeout_at(deadline, line.turn(true)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                // A machine whose migration was lost with its host, say, or without the second UUID.
                let vc = named.map(Some).or(vc);
                let seat = seat(registry, id, service, vc, bios.or(Some(None)), true).await?;
                return seat.ok_or(Refusal::Unidentified);
            }
        }
    }
}

/// A place for the connection, if enough is known of it. The UUID is the service URI's, else vCenter's, else
/// the BIOS's. While a
/// migration of the machine is under way a cookie is waited for, unless that has lasted long enough.
async fn seat(
    registry: &Arc<Registry>,
    id: ConnectionId,
    service: Option<usize>,
    vc: Option<Option<[u8; 16]>>,
    bios: Option<Option<[u8; 16]>>,
    at_last: bool,
) -> Result<Option<Seat>, Refusal> {
    let (Some(service), Some(vc)) = (service, vc.or(if at_last { Some(None) } else { None }))
    else {
        return Ok(None);
    };
    let uuid = match (vc, bios) {
        (Some(uuid), _) | (None, Some(Some(uuid))) => uuid,
        (None, _) => return Ok(None),
    };
    let key = Key { uuid, service };
    match registry.claim(key, id, at_last).await {
        Claim::Yours(seat) => {
            debug!(id, machine = %seat.shown(), service, "a serial port is connected");
            Ok(Some(seat))
        }
        Claim::Moving => Ok(None),
        Claim::Taken => Err(Refusal::Taken(key.shown())),
    }
}

/// Moves bytes until the connection, or its part in the session, ends.
async fn run<S>(
    registry: &Arc<Registry>,
    line: &mut Line<S>,
    seat: &Seat,
    pending: Pending,
) -> Result<(), Refusal>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (id, session, limits) = (seat.id(), seat.session(), registry.limits());
    let unclaimed = Instant::now() + limits.unclaimed;
    let mut quiet_since = None;
    let mut pending = Some(pending);
    loop {
        while let Some(message) = line.parse()? {
            session.deliver(id, &line.data)?;
            line.data.clear();
            hear(registry, line, seat, message);
        }
        session.deliver(id, &line.data)?;
        line.data.clear();

        let mut changed = pin!(session.changed().notified());
        changed.as_mut().enable();
        let view = session.view(id);
        if view.ask {
            line.ask(GET_VM_VC_UUID);
            line.ask(GET_VM_BIOS_UUID);
        }
        if view.claimed {
            pending = None;
        }
        if line.unsent() < OUT {
            let (binary, out) = (line.options.does(option::BINARY), &mut line.out);
            session.take_outbound(id, OUT, |bytes| encode(bytes, binary, out));
        }
        // A source that cannot be read is not silent.
        if view.role != Role::Drained || !view.may_read {
            quiet_since = None;
        } else if quiet_since.is_none() {
            quiet_since = Some(Instant::now());
        }
        let deadline = match view.role {
            Role::Gone => return Ok(()),
            Role::Drained => quiet_since.map(|since: Instant| since + limits.drain),
            Role::Peer => view.source_gone.map(|since| since + limits.takeover),
            Role::Active => pending.is_some().then_some(unclaimed),
        };
        tokio::select! {
            open = line.turn(view.may_read) => {
                if !open? {
                    return Ok(());
                }
                quiet_since = None;
            }
            () = changed => {}
            () = sleep_until(deadline.unwrap_or(unclaimed)), if deadline.is_some() => match view.role {
                Role::Drained => {
                    session.drain_over(id);
                    return Ok(());
                }
                Role::Peer => return Err(Refusal::Incomplete),
                _ => return Err(Refusal::Unclaimed(seat.shown())),
            },
        }
    }
}

/// A message of a connection that has its place.
fn hear<S: AsyncRead + AsyncWrite + Send>(
    registry: &Registry,
    line: &mut Line<S>,
    seat: &Seat,
    message: Message,
) {
    let (id, session) = (seat.id(), seat.session());
    match message {
        Message::VmotionBegin(sequence) => match registry.begin_migration(seat, &sequence) {
            Some(cookie) => {
                debug!(id, machine = %seat.shown(), "a migration begins");
                line.say(&Message::VmotionGoahead(cookie));
            }
            None => line.say(&Message::VmotionNotnow(sequence)),
        },
        Message::VmotionComplete(_) => {
            let done = session.complete(id);
            debug!(id, machine = %seat.shown(), known = done.is_some(), "a migration is complete");
            registry.forget_migration(done);
        }
        Message::VmotionAbort(_) => {
            let done = session.abort(id);
            debug!(id, machine = %seat.shown(), known = done.is_some(), "a migration was aborted");
            registry.forget_migration(done);
        }
        Message::VmotionPeer(_) => line.say(&Message::UnknownSuboption2(VMOTION_PEER)),
        Message::KnownSuboptions1(_) => line.say(&Message::KnownSuboptions2(KNOWN.to_vec())),
        Message::DoProxy(_, uri) => {
            let same = registry.service(service_name(&uri)) == Some(seat.key().service);
            line.say(if same {
                &Message::WillProxy
            } else {
                &Message::WontProxy
            });
        }
        Message::VmVcUuid(_) | Message::VmBiosUuid(_) | Message::UnknownSuboption1(_) => {
            session.heard(id);
        }
        Message::Unknown(code) => line.say(&Message::UnknownSuboption2(code)),
        _ => {}
    }
}
