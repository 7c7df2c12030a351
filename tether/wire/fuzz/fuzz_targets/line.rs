//! Both decoders below the sessions: the frame reader and the serial line.
//! `cargo +nightly fuzz run line` in `tether/wire`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tether_wire::frame::FrameReader;
use tether_wire::serial::Serial;
use tether_wire::{MAX_FRAME, Time};

fuzz_target!(|data: &[u8]| {
    let mut reader = FrameReader::guest();
    for part in data.chunks(97) {
        reader.push(part);
        while reader.next().is_some() {}
        assert!(reader.held() <= MAX_FRAME + 105);
    }
    for mut end in [Serial::guest(), Serial::host(1)] {
        let _ = end.receive(data, Time(0), |_, _| Ok(()));
        let mut out = Vec::new();
        end.transmit(Time(0), 4096, &mut out);
    }
});
