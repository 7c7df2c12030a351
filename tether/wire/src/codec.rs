//! Messages to bytes and back.

use crate::Violation;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Appends a message to a frame's body.
pub(crate) fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    struct Append<'a>(&'a mut Vec<u8>);
    impl postcard::ser_flavors::Flavor for Append<'_> {
        type Output = ();

        fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
            self.0.extend_from_slice(data);
            Ok(())
        }

        fn try_push(&mut self, data: u8) -> postcard::Result<()> {
            self.0.push(data);
            Ok(())
        }

        fn finalize(self) -> postcard::Result<()> {
            Ok(())
        }
    }
    // Appending to memory does not fail, and every message is of a kind postcard can write.
    let _ = postcard::serialize_with_flavor(message, Append(out));
}

/// The message a frame's whole body holds.
pub(crate) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Violation> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Violation::Malformed),
    }
}

/// The same behind a first byte that says what it is.
pub(crate) fn decode_marked<'a, T: Deserialize<'a>>(
    marker: u8,
    body: &'a [u8],
) -> Result<T, Violation> {
    match body.split_first() {
        Some((first, rest)) if *first == marker => decode(rest),
        _ => Err(Violation::Unexpected(
            "a frame out of its turn in the handshake",
        )),
    }
}
