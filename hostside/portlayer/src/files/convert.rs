//! Between streams that wait and code that blocks: tar streams to records, records to images.

use std::io::{self, BufReader, PipeReader, PipeWriter};

use bytes::Bytes;
use image::config::ImageConfig;
use image::files::{FilesError, from_tar};
use image::import::Options;
use image::progress::Silent;
use image::reference::Name;
use image::store::{ImageRecord, Store};

use crate::boot::chain;
use crate::error::{Error, PathProblem};
use crate::images::ByteSource;
use crate::layer::image_error;

/// An error of the conversion of records or tar streams.
pub(super) fn converted(error: FilesError) -> Error {
    Error::Path {
        kind: PathProblem::BadArchive,
        message: chain(&error),
    }
}

pub(super) fn pipe() -> Result<(PipeReader, PipeWriter), Error> {
    io::pipe().map_err(Error::state("open", "a pipe"))
}

/// Converts a tar stream; what cannot be written any more is for the other end to explain.
pub(super) fn convert(tar: ByteSource, mut records: PipeWriter) -> Result<(), Error> {
    match from_tar(BufReader::new(Incoming::new(tar)), &mut records) {
        Err(FilesError::Write(_)) => Ok(()),
        other => other.map_err(converted),
    }
}

pub(super) fn import(
    store: &Store,
    records: PipeReader,
    config: &ImageConfig,
    origin: &str,
    name: Option<&Name>,
) -> Result<ImageRecord, Error> {
    let mut fields = match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    fields.remove("rootfs");
    let options = Options::default();
    let imported = store.import_files(records, fields, origin, name, &options, &Silent);
    imported.map_err(|source| image_error(origin.to_owned(), source))
}

pub(super) fn joined<T>(
    result: Result<Result<T, Error>, tokio::task::JoinError>,
) -> Result<T, Error> {
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::ShuttingDown),
    }
}

/// Bytes that come in, for code that blocks.
pub(super) struct Incoming {
    source: ByteSource,
    piece: Bytes,
}

impl Incoming {
    fn new(source: ByteSource) -> Self {
        Self {
            source,
            piece: Bytes::new(),
        }
    }
}

impl io::Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.source.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
