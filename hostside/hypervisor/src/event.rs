//! What happens to machines, told to whoever listens.

use tokio::sync::broadcast;

use crate::machine::{MachineId, StopCause};

/// Something happened to a machine, whoever did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineEvent {
    /// To which machine.
    pub id: MachineId,
    /// What.
    pub notice: Notice,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It was made, or was found.
    Created,
    /// Its virtual CPUs started to run.
    PoweredOn,
    /// It is off; the cause is recorded with the machine.
    PoweredOff(StopCause),
    /// Its virtual CPUs were stopped.
    Suspended,
    /// Its virtual CPUs run again.
    Resumed,
    /// It moved to another host; its channel goes on.
    Moved,
    /// It is gone, by this owner or by someone else.
    Destroyed,
}

/// How many events are kept for a listener that does not listen.
const BACKLOG: usize = 1024;

/// A driver's end of its events.
#[derive(Debug, Clone)]
pub struct EventSender(broadcast::Sender<MachineEvent>);

impl Default for EventSender {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl EventSender {
    /// Tells every listener. Never waits.
    pub fn send(&self, id: MachineId, notice: Notice) {
        // No listener is not an error.
        let _ = self.0.send(MachineEvent { id, notice });
    }

    /// A new listener.
    pub fn listen(&self) -> Events {
        Events(self.0.subscribe())
    }
}

/// Events from the moment this was made.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<MachineEvent>);

/// What [`Events::next`] has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Something happened.
    Event(MachineEvent),
    /// More happened than was kept: list the machines to know where they are.
    Missed,
    /// The driver is gone.
    End,
}

impl Events {
    /// Waits for the next event. Safe to drop and call again.
    pub async fn next(&mut self) -> Next {
        match self.0.recv().await {
            Ok(event) => Next::Event(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Next::Missed,
            Err(broadcast::error::RecvError::Closed) => Next::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_that_slept_is_told_that_it_missed_something() {
        let sender = EventSender::default();
        let mut events = sender.listen();
        let id = MachineId::from_bytes([7; 16]);
        for _ in 0..=BACKLOG {
            sender.send(id, Notice::PoweredOn);
        }
        assert_eq!(events.next().await, Next::Missed);
        assert_eq!(
            events.next().await,
            Next::Event(MachineEvent {
                id,
                notice: Notice::PoweredOn
            })
        );
        drop(sender);
        while events.next().await != Next::End {}
    }
}
