//! Two output streams in one: the frames of Docker's `application/vnd.docker.multiplexed-stream`.
//!
//! Source: Engine API 1.47, `ContainerAttach`: a byte that names the stream, three zeroes, the length as
//! 32-bit big-endian number, the bytes.

use bytes::{BufMut, Bytes, BytesMut};
use portlayer::Output;

/// Output as bytes only, as of a terminal.
pub const RAW_STREAM: &str = "application/vnd.docker.raw-stream";
/// Output in frames.
pub const MULTIPLEXED_STREAM: &str = "application/vnd.docker.multiplexed-stream";

/// How output is written to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The bytes of a terminal, which has one stream.
    Raw,
    /// Frames.
    Multiplexed,
}

/// The stream a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// What the engine itself has to say.
    System = 3,
}

impl From<Output> for Channel {
    fn from(output: Output) -> Self {
        match output {
            Output::Stdout => Self::Stdout,
            Output::Stderr => Self::Stderr,
        }
    }
}

impl Framing {
    /// For a process that has a terminal, or not.
    pub fn for_terminal(terminal: bool) -> Self {
        if terminal {
            Self::Raw
        } else {
            Self::Multiplexed
        }
    }

    /// Data as it goes to the client.
    pub fn frame(self, channel: Channel, data: Bytes) -> Bytes {
        match self {
            Self::Raw => data,
            Self::Multiplexed => {
                let mut framed = BytesMut::with_capacity(data.len() + 8);
                // Data longer than 4 GiB takes several frames.
                for part in data.chunks(u32::MAX as usize) {
                    framed.put_slice(&[channel as u8, 0, 0, 0]);
                    framed.put_u32(part.len() as u32);
                    framed.put_slice(part);
                }
                framed.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_names_its_stream_and_its_length() {
        let data = Bytes::from_static(b"hello");
        let cases: [(Framing, Channel, &[u8]); 4] = [
            (Framing::Raw, Channel::Stderr, b"hello"),
            (
                Framing::Multiplexed,
                Channel::Stdout,
                b"\x01\0\0\0\0\0\0\x05hello",
            ),
            (
                Framing::Multiplexed,
                Channel::Stderr,
                b"\x02\0\0\0\0\0\0\x05hello",
            ),
            (
                Framing::Multiplexed,
                Channel::System,
                b"\x03\0\0\0\0\0\0\x05hello",
            ),
        ];
        for (framing, channel, expected) in cases {
            assert_eq!(framing.frame(channel, data.clone()), expected);
        }
    }
}
