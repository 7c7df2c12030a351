//! The guest's decoder and session against a host that may send anything, before and after it has
//! proved itself. `cargo +nightly fuzz run guest` in `tether/wire`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tether_wire::frame::{Direction, write_frame};
use tether_wire::guest::Outcome;
use tether_wire::message::*;
use tether_wire::{
    CarrierKind, ChannelKey, GuestSession, HostSession, Input, Machine, Ready, Ticket, Time,
};

struct Sim;

impl Machine for Sim {
    fn entropy(&mut self) -> [u8; 16] {
        [1; 16]
    }
    fn setup(&mut self, _: Ticket, _: Setup) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
    fn start(&mut self, _: Ticket, process: ProcessId, _: ProcessSpec) -> Outcome {
        Outcome::Done(Ok(Reply::Started(Started { pid: process.0 })))
    }
    fn files(&mut self, _: Ticket, process: ProcessId, _: FileOperation) -> Outcome {
        Outcome::Done(Ok(Reply::Started(Started { pid: process.0 })))
    }
    fn signal(&mut self, _: ProcessId, _: u8, _: SignalTarget) -> Result<(), Error> {
        Ok(())
    }
    fn resize(&mut self, _: ProcessId, _: TerminalSize) -> Result<(), Error> {
        Ok(())
    }
    fn forget(&mut self, _: ProcessId) {}
    fn processes(&mut self, _: u32) -> Result<ProcessPage, Error> {
        Ok(ProcessPage::default())
    }
    fn statistics(&mut self) -> Result<Statistics, Error> {
        Ok(Statistics::default())
    }
    fn set_clock(&mut self, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn shutdown(&mut self, _: Ticket, _: ShutdownSpec) -> Outcome {
        Outcome::Later
    }
    fn mount(&mut self, _: Ticket, _: Mount) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
    fn network(&mut self, _: Ticket, _: Network) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
}

fuzz_target!(|data: &[u8]| {
    let key = ChannelKey([0; 32]);
    for kind in [CarrierKind::Stream, CarrierKind::Serial] {
        let mut guest = GuestSession::new(kind, key.clone(), [2; 16]);
        guest.connected();
        let _ = guest.receive(data, Time(0), &mut Sim);

        // And from a host that holds the key: every chunk is a whole frame.
        let nonce = [3; 16];
        let mut host = HostSession::new(kind, key.clone(), [4; 16]);
        host.connected(nonce);
        for _ in 0..3 {
            let mut line = Vec::new();
            host.transmit(Time(0), &mut line);
            let _ = guest.receive(&line, Time(0), &mut Sim);
            line.clear();
            guest.transmit(Time(0), &mut line);
            let _ = host.receive(&line, Time(0));
        }
        let mut framed = Vec::new();
        for body in data.split(|byte| *byte == 0xff) {
            write_frame(&nonce, Direction::ToGuest, &mut framed, |out| {
                out.extend_from_slice(body)
            });
        }
        if guest.receive(&framed, Time(0), &mut Sim).is_err() {
            assert!(!guest.is_open());
        }
        while let Some(ready) = guest.next_ready() {
            if let Ready::Input(process) = ready
                && let Input::Data(bytes) = guest.input(process)
            {
                let n = bytes.len();
                guest.input_taken(process, n);
            }
        }
        let mut out = Vec::new();
        guest.transmit(Time(0), &mut out);
    }
});
