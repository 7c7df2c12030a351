//! The decoder of files' records, with bytes cut anywhere. `cargo +nightly fuzz run files` in
//! `tether/wire`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tether_wire::files::{Decoder, Item, Shape};

fuzz_target!(|data: &[u8]| {
    let (cut, data) = match data.split_first() {
        Some((cut, data)) => (usize::from(*cut) + 1, data),
        None => return,
    };
    for shape in [Shape::Listing, Shape::Tree, Shape::Archive, Shape::Stat] {
        let mut decoder = Decoder::new(shape);
        'stream: for piece in data.chunks(cut) {
            let mut input = piece;
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(Item::Entry(entry))) => entry.check().unwrap(),
                    Ok(Some(Item::Data(data))) => assert!(!data.is_empty()),
                    Ok(Some(Item::End)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.finish(), Err(error));
                        break 'stream;
                    }
                }
            }
            assert!(input.is_empty());
        }
    }
});
