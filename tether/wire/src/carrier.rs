//! What lies below the frames: nothing, or the serial line's packets.

use crate::frame::{Direction, Found, FrameReader, Nonce, write_frame, write_preamble};
use crate::serial::{Line, Serial};
use crate::{Time, Violation};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// What a channel's bytes travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CarrierKind {
    /// Undamaged and in order while a connection lasts: vsock, virtio-serial.
    Stream,
    /// A serial line: bytes may be lost, damaged or added, and nobody says when a peer comes or goes.
    Serial,
}

/// What a frame of a stream needs beside the stream's bytes, at most: length, kind, process, output,
/// offset and length as postcard writes them, tag.
const FRAME_ROOM: usize = 32;
/// How much is handed to the adapter at a time.
const BATCH: usize = 64 * 1024;

/// Reads and writes frames on either kind.
#[derive(Debug)]
pub(crate) struct Carrier {
    reader: FrameReader,
    serial: Option<Box<Serial>>,
    /// Frames on their way into the serial line.
    staged: Vec<u8>,
}

impl Carrier {
    pub(crate) fn guest(kind: CarrierKind) -> Self {
        let serial = (kind == CarrierKind::Serial).then(|| Box::new(Serial::guest()));
        Self {
            reader: FrameReader::guest(),
            serial,
            staged: Vec::new(),
        }
    }

    pub(crate) fn host(kind: CarrierKind, nonce: Nonce) -> Self {
        let [.., a, b, c, d] = nonce;
        let epoch = u32::from_le_bytes([a, b, c, d]);
        let serial = (kind == CarrierKind::Serial).then(|| Box::new(Serial::host(epoch)));
        Self {
            reader: FrameReader::host(nonce),
            serial,
            staged: Vec::new(),
        }
    }

    /// A new connection on the same carrier, at the guest's end.
    pub(crate) fn reset_guest(&mut self) {
        self.reader.reset();
        if let Some(serial) = &mut self.serial {
            **serial = Serial::guest();
        }
    }

    /// Lets go of what was being read: hunts for a preamble.
    pub(crate) fn hunt(&mut self) {
        self.reader.reset();
    }

    /// Takes bytes; `each` gets every preamble and frame, and what it writes back is sent.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        now: Time,
        mut each: impl FnMut(Found<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let Some(serial) = &mut self.serial else {
            for part in bytes.chunks(BATCH) {
                Self::read(&mut self.reader, part, &mut each)?;
            }
            return Ok(());
        };
        let mut opened = false;
        let mut received = Vec::new();
        let result = serial.receive(bytes, now, |line, bytes| {
            if line == Line::Opened {
                opened = true;
                received.clear();
            }
            received.extend_from_slice(bytes);
            Ok(())
        });
        if opened {
            // The preamble that comes next resets the session.
            self.reader.reset();
            self.staged = Vec::new();
        }
        Self::read(&mut self.reader, &received, &mut each)?;
        result
    }

    fn read(
        reader: &mut FrameReader,
        bytes: &[u8],
        each: &mut impl FnMut(Found<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        reader.push(bytes);
        while let Some(found) = reader.next() {
            each(found)?;
        }
        Ok(())
    }

    /// Whether a frame may be written now into what goes out.
    pub(crate) fn wants_frames(&self, out: &[u8]) -> bool {
        match &self.serial {
            None => out.len() < BATCH,
            Some(serial) => serial.room() > self.staged.len(),
        }
    }

    /// The most bytes of a stream that should go into one frame. A virtio-serial port takes 32 KiB by
    /// one write(2) (drivers/char/virtio_console.c): a whole frame should fit.
    pub(crate) fn chunk(&self) -> usize {
        if self.serial.is_some() {
            4 * 1024
        } else {
            crate::MAX_CHUNK - FRAME_ROOM
        }
    }

    pub(crate) fn preamble(&mut self, nonce: &Nonce, out: &mut Vec<u8>) {
        write_preamble(
            nonce,
            if self.serial.is_some() {
                &mut self.staged
            } else {
                out
            },
        );
    }

    pub(crate) fn frame(
        &mut self,
        nonce: &Nonce,
        direction: Direction,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        write_frame(
            nonce,
            direction,
            if self.serial.is_some() {
                &mut self.staged
            } else {
                out
            },
            write,
        )
    }

    /// Sends what was staged and what the line wants to repeat.
    pub(crate) fn flush(&mut self, now: Time, out: &mut Vec<u8>) {
        if let Some(serial) = &mut self.serial {
            if !self.staged.is_empty() {
                serial.write(&self.staged);
                self.staged = Vec::new();
            }
            serial.transmit(now, BATCH, out);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.serial.as_ref().and_then(|serial| serial.deadline())
    }

    pub(crate) fn is_serial(&self) -> bool {
        self.serial.is_some()
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.staged.is_empty()
            && self
                .serial
                .as_ref()
                .is_none_or(|serial| serial.is_flushed())
    }
}
