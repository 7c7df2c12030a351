//! Bytes that go into an image: held in memory, or a file that is streamed
//! when the image is written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::Error;

/// The bytes of one file of an image, with a length known beforehand.
#[derive(Debug)]
pub struct Content(Source);

#[derive(Debug)]
enum Source {
    Bytes(Vec<u8>),
    File {
        file: File,
        path: PathBuf,
        length: u64,
    },
}

impl Content {
    /// Bytes that exist in memory.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Content(Source::Bytes(bytes.into()))
    }

    /// The regular file at `path`, opened now and read when the image is
    /// written. Its length is fixed now.
    ///
    /// # Errors
    /// [`Error::Read`] if it cannot be opened, [`Error::NotRegular`] if it has
    /// no fixed length.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(Error::NotRegular {
                path: path.to_owned(),
            });
        }
        Ok(Content(Source::File {
            file,
            path: path.to_owned(),
            length: metadata.len(),
        }))
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match &self.0 {
            Source::Bytes(bytes) => bytes.len() as u64,
            Source::File { length, .. } => *length,
        }
    }

    /// What to call this content in a message: its path, or "the given bytes".
    pub fn name(&self) -> String {
        match &self.0 {
            Source::Bytes(_) => "the given bytes".to_owned(),
            Source::File { path, .. } => path.display().to_string(),
        }
    }

    /// The first bytes, at most `count`, fewer if there are no more.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn head(&self, count: usize) -> Result<Vec<u8>, Error> {
        let (file, path) = match &self.0 {
            Source::Bytes(bytes) => return Ok(bytes[..count.min(bytes.len())].to_vec()),
            Source::File { file, path, .. } => (file, path),
        };
        let mut file: &File = file;
        let mut head = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.take(count as u64).read_to_end(&mut head))
            .map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
        Ok(head)
    }

    /// All bytes, for content that is small by its nature.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond `limit` bytes, calling the content `what`;
    /// [`Error::Read`] and [`Error::Changed`] as when copying.
    pub fn read_all(&self, what: &'static str, limit: u64) -> Result<Vec<u8>, Error> {
        if self.length() > limit {
            return Err(Error::TooLarge {
                what,
                length: self.length(),
                limit,
            });
        }
        let mut bytes = Vec::new();
        self.copy_to(&mut bytes, "buffer")?;
        Ok(bytes)
    }

    /// Writes exactly [`length`](Self::length) bytes to `out`, which belongs
    /// to the artefact called `image`.
    pub(crate) fn copy_to(&self, out: &mut impl Write, image: &'static str) -> Result<(), Error> {
        let (file, path, planned) = match &self.0 {
            Source::Bytes(bytes) => return out.write_all(bytes).map_err(Error::write(image)),
            Source::File { file, path, length } => (file, path, *length),
        };
        let read = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let mut file: &File = file;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let mut buffer = vec![0; 64 * 1024];
        let mut found = 0;
        // One byte more than planned is asked for, to see a file that grew.
        let mut rest = file.take(planned + 1);
        loop {
            let count = match rest.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read(error)),
            };
            found += count as u64;
            if found > planned {
                break;
            }
            out.write_all(&buffer[..count])
                .map_err(Error::write(image))?;
        }
        if found != planned {
            return Err(Error::Changed {
                path: path.clone(),
                planned,
                found,
            });
        }
        Ok(())
    }
}

/// A writer that knows its position, so that what a plan placed at an offset
/// is written there or not at all.
pub(crate) struct Positioned<W> {
    out: W,
    position: u64,
    image: &'static str,
}

impl<W: Write> Positioned<W> {
    pub(crate) fn new(out: W, image: &'static str) -> Self {
        Positioned {
            out,
            position: 0,
            image,
        }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out
            .write_all(bytes)
            .map_err(Error::write(self.image))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn content(&mut self, content: &Content) -> Result<(), Error> {
        content.copy_to(&mut self.out, self.image)?;
        self.position += content.length();
        Ok(())
    }

    /// Zeros up to `offset`, which must not lie behind the position.
    pub(crate) fn zeros_until(&mut self, offset: u64) -> Result<(), Error> {
        assert!(
            offset >= self.position,
            "plan places {offset} behind {}",
            self.position
        );
        let zeros = [0; 4096];
        while self.position < offset {
            let count = (offset - self.position).min(zeros.len() as u64) as usize;
            self.bytes(&zeros[..count])?;
        }
        Ok(())
    }

    /// Lets `write` write exactly `length` bytes.
    pub(crate) fn embed(
        &mut self,
        length: u64,
        write: impl FnOnce(&mut W) -> Result<(), Error>,
    ) -> Result<(), Error> {
        write(&mut self.out)?;
        self.position += length;
        Ok(())
    }

    pub(crate) fn align(&mut self, to: u64) -> Result<(), Error> {
        self.zeros_until(self.position.next_multiple_of(to))
    }

    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(Error::write(self.image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_under_the_plan_is_an_error() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("file");
        for (now, expected) in [(99, 99), (100, 100), (101, 101), (200_000, 101)] {
            std::fs::write(&path, [7; 100]).expect("write");
            let content = Content::open(&path).expect("open");
            let file = File::options().write(true).open(&path).expect("open");
            file.set_len(now).expect("set length");
            let mut copy = Vec::new();
            match content.copy_to(&mut copy, "ISO") {
                Ok(()) => assert_eq!((now, copy.len()), (100, 100)),
                Err(Error::Changed { planned, found, .. }) => {
                    assert_eq!((planned, found), (100, expected));
                    assert!(copy.len() <= 100, "never more than planned");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_the_image() {
        let mut full = [0; 10];
        let result = Content::bytes([7; 11]).copy_to(&mut &mut full[..], "ISO");
        assert!(matches!(result, Err(Error::Write { image: "ISO", .. })));
    }

    #[test]
    fn small_content_has_a_limit() {
        let content = Content::bytes([7; 11]);
        assert_eq!(content.head(3).expect("memory"), [7; 3]);
        assert_eq!(content.read_all("it", 11).expect("memory"), [7; 11]);
        let refused = content.read_all("it", 10);
        assert!(matches!(
            refused,
            Err(Error::TooLarge {
                what: "it",
                length: 11,
                limit: 10
            })
        ));
    }
}
