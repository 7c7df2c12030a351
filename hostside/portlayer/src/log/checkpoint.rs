//! How far a run's streams are stored: a small file beside the log, `log.cursor`.
//!
//! It holds two slots that are written in turn, each with its own checksum, so one of them is whole whatever
//! byte the writer was killed at. What was logged after the newer one is found by reading the log from its
//! position on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::storage::Storage;

const SLOT: usize = 128;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What the writer was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Appending to the current file.
    Writing,
    /// Giving the current file, this long, another name. Nothing is appended before that is done.
    Rotating,
}

/// How far it had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) phase: Phase,
    /// The run the offsets belong to.
    pub(super) run: u64,
    /// Bytes of the current file that the offsets account for.
    pub(super) position: u64,
    /// Bytes of stdout and stderr stored; `None` if that is not known.
    pub(super) stored: [Option<u64>; 2],
}

/// The file.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    file: File,
    /// Number of the next write; its last bit is the slot.
    turn: u64,
}

impl CheckpointFile {
    /// Takes the open file and gives what it last held: `None` if it never held anything, or is damaged.
    pub(super) fn new(file: File) -> io::Result<(Self, Option<Checkpoint>)> {
        let mut text = [0; 2 * SLOT];
        let mut filled = 0;
        while filled < text.len() {
            match file.read_at(&mut text[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        let newest = [&text[..SLOT], &text[SLOT..]]
            .into_iter()
            .filter_map(parse)
            .max_by_key(|(turn, _)| *turn);
        let turn = newest.map_or(0, |(turn, _)| turn.wrapping_add(1));
        Ok((
            Self { file, turn },
            newest.map(|(_, checkpoint)| checkpoint),
        ))
    }

    /// Writes it. After an error the former one still holds.
    pub(super) fn write(
        &mut self,
        storage: &mut impl Storage,
        checkpoint: &Checkpoint,
    ) -> io::Result<()> {
        let slot = (self.turn & 1) * SLOT as u64;
        storage.write_at(&self.file, slot, format(self.turn, checkpoint).as_bytes())?;
        self.turn = self.turn.wrapping_add(1);
        Ok(())
    }
}

fn format(turn: u64, checkpoint: &Checkpoint) -> String {
    let phase = match checkpoint.phase {
        Phase::Writing => 'w',
        Phase::Rotating => 'r',
    };
    let [stdout, stderr] = checkpoint.stored.map(|stored| stored.unwrap_or(u64::MAX));
    let text = format!(
        "{turn:016x} {phase} {:016x} {:016x} {stdout:016x} {stderr:016x}",
        checkpoint.run, checkpoint.position
    );
    let sum = CRC.checksum(text.as_bytes());
    format!("{text} {sum:08x}{:1$}\n", "", SLOT - text.len() - 10)
}

fn parse(slot: &[u8]) -> Option<(u64, Checkpoint)> {
    let text = std::str::from_utf8(slot).ok()?.trim_end();
    let (text, sum) = text.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != CRC.checksum(text.as_bytes()) {
        return None;
    }
    let mut words = text.split(' ');
    let number = |word: Option<&str>| u64::from_str_radix(word?, 16).ok();
    let turn = number(words.next())?;
    let phase = match words.next()? {
        "w" => Phase::Writing,
        "r" => Phase::Rotating,
        _ => return None,
    };
    let run = number(words.next())?;
    let position = number(words.next())?;
    let mut stored = || Some(Some(number(words.next())?).filter(|n| *n != u64::MAX));
    let stored = [stored()?, stored()?];
    Some((
        turn,
        Checkpoint {
            phase,
            run,
            position,
            stored,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::super::storage::Disk;
    use super::*;

    fn checkpoint(run: u64) -> Checkpoint {
        Checkpoint {
            phase: Phase::Rotating,
            run,
            position: run * 3,
            stored: [Some(run), None],
        }
    }

    #[test]
    fn the_newer_one_comes_back_and_the_older_one_when_the_newer_is_damaged_at_any_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.cursor");
        let open = || CheckpointFile::new(Disk.open(&path).unwrap()).unwrap();
        assert_eq!(open().1, None);
        for run in 1..5 {
            open().0.write(&mut Disk, &checkpoint(run)).unwrap();
            assert_eq!(open().1, Some(checkpoint(run)));
        }
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 2 * SLOT);
        // The fourth lies in the second slot; its padding says nothing.
        for at in SLOT..SLOT + 95 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(open().1, Some(checkpoint(3)), "byte {at}");
        }
    }
}
