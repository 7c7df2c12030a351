//! The host's decoder and session against a guest that may send anything.
//! `cargo +nightly fuzz run host` in `tether/wire`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tether_wire::frame::{Direction, write_frame, write_preamble};
use tether_wire::message::{Output, ProcessId};
use tether_wire::{CarrierKind, ChannelKey, HostEvent, HostSession, OUTPUT_WINDOW, Time};

fuzz_target!(|data: &[u8]| {
    for kind in [CarrierKind::Stream, CarrierKind::Serial] {
        let nonce = [3; 16];
        let mut host = HostSession::new(kind, ChannelKey([0; 32]), [4; 16]);
        host.adopt(ProcessId(0), 0, 0);
        host.connected(nonce);
        let mut line = data.to_vec();
        write_preamble(&nonce, &mut line);
        for body in data.split(|byte| *byte == 0xff) {
            write_frame(&nonce, Direction::ToHost, &mut line, |out| {
                out.extend_from_slice(body)
            });
        }
        let _ = host.receive(&line, Time(0));
        let mut unstored = 0;
        while let Some(event) = host.next_event() {
            if let HostEvent::Output {
                process: ProcessId(0),
                output: Output::Stdout,
                data,
                ..
            } = event
            {
                unstored += data.len() as u64;
            }
        }
        assert!(unstored <= OUTPUT_WINDOW);
        let mut out = Vec::new();
        host.transmit(Time(0), &mut out);
    }
});
