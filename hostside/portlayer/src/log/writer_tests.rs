use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::LogRecord;
use super::*;

/// Fails for good, or until it is filled up again, when its budget is spent: a byte written is one, any other
/// operation too. A write is done up to where the budget ends.
#[derive(Clone)]
struct Faulty(Rc<Cell<u64>>);

impl Faulty {
    fn new(budget: u64) -> Self {
        Self(Rc::new(Cell::new(budget)))
    }

    fn spend(&self, wanted: usize) -> (usize, io::Result<()>) {
        let left = self.0.get();
        let done = left.min(wanted as u64);
        self.0.set(left - done);
        let result = if done == wanted as u64 {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        };
        (done as usize, result)
    }
}

impl Storage for Faulty {
    fn write_at(&mut self, file: &File, position: u64, data: &[u8]) -> io::Result<()> {
        let (done, result) = self.spend(data.len());
        Disk.write_at(file, position, &data[..done])?;
        result
    }
    fn set_len(&mut self, file: &File, len: u64) -> io::Result<()> {
        self.spend(1).1?;
        Disk.set_len(file, len)
    }
    fn open(&mut self, path: &Path) -> io::Result<File> {
        self.spend(1).1?;
        Disk.open(path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.spend(1).1?;
        Disk.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.spend(1).1?;
        Disk.remove(path)
    }
}

fn spec(max_size: Option<u64>, max_files: u32) -> LogSpec {
    LogSpec::JsonFile {
        max_size,
        max_files: NonZeroU32::new(max_files).unwrap(),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// All records, oldest first, and nothing else in the files.
fn records(directory: &Path) -> Vec<LogRecord> {
    let count = fs::read_dir(directory).unwrap().count() as u32;
    let numbers = (0..count)
        .rev()
        .filter(|number| numbered_file(directory, *number).exists());
    numbers
        .flat_map(|number| {
            let text = fs::read(numbered_file(directory, number)).unwrap();
            assert!(text.is_empty() || text.ends_with(b"\n"), "half a line");
            text.split_inclusive(|b| *b == b'\n')
                .map(|line| line::decode(&line[..line.len() - 1]).expect("a record"))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn bytes(directory: &Path, output: Output) -> Vec<u8> {
    let wanted = records(directory)
        .into_iter()
        .filter(|record| record.output == output);
    wanted.flat_map(|record| record.data).collect()
}

fn opened(spec: &LogSpec) -> (TempDir, Writer) {
    let directory = tempfile::tempdir().unwrap();
    let writer = Writer::open(directory.path(), spec, 1, Feed::new()).unwrap();
    (directory, writer)
}

#[test]
fn lines_become_records_with_the_time_their_end_came() {
    let (directory, mut writer) = opened(&spec(None, 1));
    let stdout = Output::Stdout;
    assert_eq!(writer.append(stdout, 0, b"a\nb", at(1)).unwrap(), 2);
    assert_eq!(writer.append(Output::Stderr, 0, b"e\n", at(2)).unwrap(), 2);
    assert_eq!(writer.append(stdout, 3, b"c\n\n", at(3)).unwrap(), 6);
    assert_eq!(writer.append(stdout, 6, b"end", at(4)).unwrap(), 6);
    assert_eq!(writer.cursor(), [6, 2]);
    writer.end().unwrap();
    assert_eq!(writer.cursor(), [9, 2]);
    let found: Vec<_> = records(directory.path())
        .into_iter()
        .map(|r| {
            (
                r.output,
                String::from_utf8(r.data.to_vec()).unwrap(),
                r.time,
            )
        })
        .collect();
    let expected = [
        (stdout, "a\n", 1),
        (Output::Stderr, "e\n", 2),
        (stdout, "bc\n", 3),
        (stdout, "\n", 3),
        (stdout, "end", 4),
    ];
    assert_eq!(
        found,
        expected.map(|(output, text, time)| (output, text.to_owned(), at(time)))
    );
}

#[test]
fn lines_longer_than_a_record_are_split_where_docker_splits_them() {
    for (len, expected) in [
        (LONGEST_RECORD - 1, vec![LONGEST_RECORD]),
        (LONGEST_RECORD, vec![LONGEST_RECORD, 1]),
        (
            2 * LONGEST_RECORD + 5,
            vec![LONGEST_RECORD, LONGEST_RECORD, 6],
        ),
    ] {
        for step in [1000, LONGEST_RECORD, usize::MAX] {
            let (directory, mut writer) = opened(&spec(None, 1));
            let mut text = vec![b'x'; len];
            text.push(b'\n');
            let mut offset = 0;
            for piece in text.chunks(step.min(text.len())) {
                writer.append(Output::Stdout, offset, piece, at(0)).unwrap();
                offset += piece.len() as u64;
            }
            let lengths: Vec<_> = records(directory.path())
                .iter()
                .map(|r| r.data.len())
                .collect();
            assert_eq!(lengths, expected, "{len} bytes by {step}");
        }
    }
}

#[test]
fn bytes_given_again_are_left_out_and_bytes_that_are_missing_are_an_error() {
    let (directory, mut writer) = opened(&spec(None, 1));
    let stdout = Output::Stdout;
    writer.append(stdout, 0, b"one\ntw", at(0)).unwrap();
    writer.append(stdout, 0, b"one\n", at(0)).unwrap();
    assert_eq!(writer.append(stdout, 2, b"e\ntwo\n", at(0)).unwrap(), 8);
    let error = writer.append(stdout, 9, b"x\n", at(0)).unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(text.contains("8 to 9"), "{text}");
    assert_eq!(bytes(directory.path(), stdout), b"one\ntwo\n");
}

#[test]
fn the_next_run_begins_at_nothing_behind_what_is_there() {
    let (directory, mut writer) = opened(&spec(None, 1));
    writer
        .append(Output::Stdout, 0, b"first\nhalf", at(0))
        .unwrap();
    writer.end().unwrap();
    drop(writer);
    for _ in 0..2 {
        // The same number again is the same run.
        let mut writer = Writer::open(directory.path(), &spec(None, 1), 2, Feed::new()).unwrap();
        writer
            .append(Output::Stdout, 0, b"second\n", at(0))
            .unwrap();
        assert_eq!(writer.cursor(), [7, 0]);
    }
    assert_eq!(
        bytes(directory.path(), Output::Stdout),
        b"first\nhalfsecond\n"
    );
}

#[test]
fn files_are_rotated_at_their_size_and_the_oldest_goes() {
    for (max_files, kept) in [(1, "gh"), (2, "efgh"), (3, "cdefgh"), (9, "abcdefgh")] {
        let (directory, mut writer) = opened(&spec(Some(100), max_files));
        for (n, letter) in ('a'..='h').enumerate() {
            let line = format!("{letter}\n");
            writer
                .append(Output::Stdout, 2 * n as u64, line.as_bytes(), at(0))
                .unwrap();
        }
        let found = String::from_utf8(bytes(directory.path(), Output::Stdout)).unwrap();
        // A line has 75 bytes, so a file has two.
        assert_eq!(found.replace('\n', ""), kept, "{max_files} files");
    }
}

#[test]
fn one_call_with_much_in_it_is_rotated_as_line_by_line() {
    let text: Vec<u8> = (0..2000)
        .flat_map(|n| format!("{n}\n").into_bytes())
        .collect();
    let (directory, mut writer) = opened(&spec(Some(1000), 5));
    writer.append(Output::Stdout, 0, &text, at(0)).unwrap();
    for number in 0..5 {
        let len = fs::metadata(numbered_file(directory.path(), number))
            .unwrap()
            .len();
        assert!(len <= 1000 + 80, "{number}: {len}");
    }
    assert!(!numbered_file(directory.path(), 5).exists());
    assert!(text.ends_with(&bytes(directory.path(), Output::Stdout)));
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost_when_there_is_room_again() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Faulty::new(u64::MAX);
    let spec = spec(Some(2000), 1000);
    let mut writer =
        Writer::open_on(storage.clone(), directory.path(), &spec, 1, Feed::new()).unwrap();
    let text: Vec<u8> = (0..500)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect();
    let (mut offset, mut failures) = (0, 0);
    while offset < text.len() {
        let end = text.len().min(offset + 97);
        storage.0.set(failures % 400);
        match writer.append(Output::Stdout, offset as u64, &text[offset..end], at(0)) {
            Ok(_) => offset = end,
            Err(error) => {
                failures += 7;
                assert!(error.to_string().starts_with("cannot "), "{error}");
            }
        }
        if failures % 3 == 0 {
            storage.0.set(u64::MAX);
            writer
                .append(Output::Stdout, writer.cursor()[0], b"", at(0))
                .unwrap();
            storage.0.set(100_000);
            if writer
                .append(Output::Stdout, offset as u64, &text[offset..end], at(0))
                .is_ok()
            {
                offset = end;
            }
        }
    }
    storage.0.set(u64::MAX);
    writer.end().unwrap();
    assert!(failures > 0);
    assert_eq!(bytes(directory.path(), Output::Stdout), text);
}

#[test]
fn a_log_without_its_cursor_goes_on_and_takes_what_comes() {
    let (directory, mut writer) = opened(&spec(None, 1));
    writer.append(Output::Stdout, 0, b"first\n", at(0)).unwrap();
    drop(writer);
    fs::remove_file(checkpoint_file(directory.path())).unwrap();
    let mut writer = Writer::open(directory.path(), &spec(None, 1), 1, Feed::new()).unwrap();
    assert_eq!(
        writer.append(Output::Stdout, 6, b"next\n", at(0)).unwrap(),
        11
    );
    assert_eq!(bytes(directory.path(), Output::Stdout), b"first\nnext\n");
}

#[test]
fn without_a_log_bytes_are_counted_over_a_kill() {
    let (directory, mut writer) = opened(&LogSpec::None);
    assert_eq!(writer.append(Output::Stdout, 0, b"abc", at(0)).unwrap(), 3);
    drop(writer);
    let mut writer = Writer::open(directory.path(), &LogSpec::None, 1, Feed::new()).unwrap();
    assert_eq!(writer.cursor(), [3, 0]);
    assert_eq!(writer.append(Output::Stdout, 1, b"bcde", at(0)).unwrap(), 5);
    assert!(!current_file(directory.path()).exists());
}

#[test]
fn opening_a_long_log_reads_only_what_lies_behind_the_checkpoint() {
    let (directory, mut writer) = opened(&spec(None, 1));
    let line = [&[b'x'; 999][..], b"\n"].concat();
    for n in 0..3000u64 {
        writer
            .append(Output::Stdout, n * 1000, &line, at(0))
            .unwrap();
    }
    drop(writer);
    let file = Disk.open(&checkpoint_file(directory.path())).unwrap();
    let last = CheckpointFile::new(file).unwrap().1.unwrap();
    let len = fs::metadata(current_file(directory.path())).unwrap().len();
    assert!(
        len - last.position < CHECKPOINT_EVERY + BATCH as u64,
        "{last:?} of {len}"
    );
    let writer = Writer::open(directory.path(), &spec(None, 1), 1, Feed::new()).unwrap();
    assert_eq!(writer.cursor(), [3_000_000, 0]);
}

/// What the controller goes through.
#[derive(Debug, Clone)]
enum Step {
    /// The process writes, and the controller reads it all.
    Write(Output, Vec<u8>),
    /// The controller is killed after this many bytes and operations from here on.
    KillAfter(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let output = prop_oneof![Just(Output::Stdout), Just(Output::Stderr)];
    let data = prop_oneof![
        4 => "[ab\n]{0,40}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (0..40_000usize).prop_map(|n| vec![b'x'; n]),
        1 => (0..150usize).prop_map(|n| b"y\n".repeat(n)),
    ];
    let step = prop_oneof![
        3 => (output, data).prop_map(|(output, data)| Step::Write(output, data)),
        1 => prop_oneof![0..40u64, 0..3000u64].prop_map(Step::KillAfter),
    ];
    prop::collection::vec(step, 0..24)
}

/// The guest's end: what it wrote and how much of it it may forget.
#[derive(Default)]
struct Guest {
    written: [Vec<u8>; 2],
    acknowledged: [u64; 2],
}

fn live_through(steps: &[Step], spec: &LogSpec) -> (TempDir, Guest) {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::default();
    let mut storage = Faulty::new(u64::MAX);
    let mut writer: Option<Writer<Faulty>> = None;
    let mut end = false;
    let mut steps = steps.iter();
    while !end {
        match steps.next() {
            Some(Step::Write(output, data)) => guest.written[index(*output)].extend(data),
            Some(Step::KillAfter(budget)) => storage.0.set(*budget),
            None => {
                end = true;
                storage = Faulty::new(u64::MAX);
                writer = None;
            }
        }
        // Until nothing is left to be given or it is killed; then again with a new controller.
        let alive = 'controller: {
            if writer.is_none() {
                let opened =
                    Writer::open_on(storage.clone(), directory.path(), spec, 7, Feed::new());
                let Ok(opened) = opened else {
                    break 'controller false;
                };
                for (cursor, acknowledged) in opened.cursor().iter().zip(guest.acknowledged) {
                    assert!(*cursor >= acknowledged, "what was acknowledged is gone");
                }
                writer = Some(opened);
            }
            let Some(writer) = &mut writer else {
                break 'controller false;
            };
            for output in [Output::Stdout, Output::Stderr] {
                let index = index(output);
                // The guest sends all it has, in pieces.
                let mut offset = guest.acknowledged[index];
                for piece in guest.written[index][offset as usize..].chunks(5000) {
                    let Ok(stored) = writer.append(output, offset, piece, at(1)) else {
                        break 'controller false;
                    };
                    assert!(stored <= guest.written[index].len() as u64);
                    guest.acknowledged[index] = stored;
                    offset += piece.len() as u64;
                }
            }
            if end {
                writer.end().unwrap();
                guest.acknowledged = writer.cursor();
            }
            true
        };
        if !alive {
            writer = None;
            storage = Faulty::new(u64::MAX);
        }
    }
    (directory, guest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn killed_at_any_byte_nothing_is_lost_and_nothing_is_doubled(
        steps in steps(),
        max_size in prop_oneof![Just(None), (400..9000u64).prop_map(Some)],
    ) {
        let (directory, guest) = live_through(&steps, &spec(max_size, 100_000));
        for output in [Output::Stdout, Output::Stderr] {
            let written = &guest.written[index(output)];
            prop_assert_eq!(guest.acknowledged[index(output)], written.len() as u64);
            prop_assert!(bytes(directory.path(), output) == *written, "{:?} differs", output);
        }
    }

    #[test]
    fn with_few_files_the_end_of_it_is_kept_exactly(
        steps in steps(),
        max_size in 200..9000u64,
        max_files in 1..4u32,
    ) {
        let (directory, guest) = live_through(&steps, &spec(Some(max_size), max_files));
        prop_assert!(!numbered_file(directory.path(), max_files).exists());
        for output in [Output::Stdout, Output::Stderr] {
            let written = &guest.written[index(output)];
            prop_assert_eq!(guest.acknowledged[index(output)], written.len() as u64);
            prop_assert!(written.ends_with(&bytes(directory.path(), output)));
        }
    }
}
