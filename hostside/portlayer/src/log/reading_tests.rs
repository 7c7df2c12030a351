use std::num::NonZeroU32;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::Writer;
use super::*;

const ALL: LogQuery = LogQuery {
    stdout: true,
    stderr: true,
    since: None,
    until: None,
    tail: None,
    follow: Follow::No,
};

const FOLLOWED: LogQuery = LogQuery {
    follow: Follow::Yes,
    ..ALL
};

fn spec(max_size: Option<u64>, max_files: u32) -> LogSpec {
    LogSpec::JsonFile {
        max_size,
        max_files: NonZeroU32::new(max_files).unwrap(),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

struct Log {
    directory: TempDir,
    feed: Feed,
    spec: LogSpec,
    writer: Option<Writer>,
    offsets: [u64; 2],
}

impl Log {
    fn new(spec: LogSpec) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let feed = Feed::new();
        let writer = Writer::open(directory.path(), &spec, 1, feed.clone()).unwrap();
        Self {
            directory,
            feed,
            spec,
            writer: Some(writer),
            offsets: [0; 2],
        }
    }

    fn write(&mut self, output: Output, data: &[u8], seconds: u64) {
        let index = usize::from(output == Output::Stderr);
        let writer = self.writer.as_mut().unwrap();
        writer
            .append(output, self.offsets[index], data, at(seconds))
            .unwrap();
        self.offsets[index] += data.len() as u64;
    }

    fn read(&self, query: LogQuery) -> LogReader {
        read(self.directory.path(), &self.spec, query, &self.feed).unwrap()
    }

    async fn text(&self, query: LogQuery) -> String {
        rest(&mut self.read(query)).await
    }
}

async fn rest(reader: &mut LogReader) -> String {
    let mut text = Vec::new();
    while let Some(record) = reader.next().await {
        text.extend_from_slice(&record.unwrap().data);
    }
    String::from_utf8(text).unwrap()
}

async fn next(reader: &mut LogReader) -> String {
    let record = reader.next().await.unwrap().unwrap();
    String::from_utf8(record.data.to_vec()).unwrap()
}

/// `o1` to stdout at second 1, `e2` to stderr at second 2, and so on to 8.
fn eight(spec: LogSpec) -> Log {
    let mut log = Log::new(spec);
    for n in 1..=8 {
        let (output, letter) = match n % 2 {
            1 => (Output::Stdout, 'o'),
            _ => (Output::Stderr, 'e'),
        };
        log.write(output, format!("{letter}{n}\n").as_bytes(), n);
    }
    log
}

#[tokio::test]
async fn a_query_gives_the_records_it_describes() {
    let stdout = LogQuery {
        stderr: false,
        ..ALL
    };
    let moment = |seconds| Some(at(seconds));
    let nanosecond = Duration::from_nanos(1);
    let tail = |tail| LogQuery {
        tail: Some(tail),
        ..ALL
    };
    let cases = [
        (ALL, "o1 e2 o3 e4 o5 e6 o7 e8"),
        (stdout, "o1 o3 o5 o7"),
        (
            LogQuery {
                stdout: false,
                ..ALL
            },
            "e2 e4 e6 e8",
        ),
        (
            LogQuery {
                stdout: false,
                ..stdout
            },
            "",
        ),
        (
            LogQuery {
                since: moment(6),
                ..ALL
            },
            "e6 o7 e8",
        ),
        (
            LogQuery {
                since: Some(at(6) + nanosecond),
                ..ALL
            },
            "o7 e8",
        ),
        (
            LogQuery {
                until: moment(3),
                ..ALL
            },
            "o1 e2",
        ),
        (
            LogQuery {
                until: Some(at(3) + nanosecond),
                ..ALL
            },
            "o1 e2 o3",
        ),
        (
            LogQuery {
                since: moment(3),
                until: moment(5),
                ..ALL
            },
            "o3 e4",
        ),
        (tail(0), ""),
        (tail(1), "e8"),
        (tail(3), "e6 o7 e8"),
        (tail(8), "o1 e2 o3 e4 o5 e6 o7 e8"),
        (tail(u64::MAX), "o1 e2 o3 e4 o5 e6 o7 e8"),
        (
            LogQuery {
                tail: Some(2),
                ..stdout
            },
            "o5 o7",
        ),
        (
            LogQuery {
                since: moment(8),
                ..tail(3)
            },
            "e8",
        ),
        (
            LogQuery {
                until: moment(5),
                ..tail(2)
            },
            "o3 e4",
        ),
    ];
    // All in one file; two lines a file; with and without the writer that wrote them.
    for (max_size, max_files) in [(None, 1), (Some(100), 9)] {
        let mut log = eight(spec(max_size, max_files));
        for (query, expected) in cases {
            let found = log.text(query).await.replace('\n', " ");
            assert_eq!(found.trim(), expected, "{query:?}");
        }
        log.writer = None;
        log.feed = Feed::new();
        for (query, expected) in cases {
            let found = log.text(query).await.replace('\n', " ");
            assert_eq!(found.trim(), expected, "later: {query:?}");
        }
    }
}

#[tokio::test]
async fn following_gets_what_comes_over_rotations_and_ends_with_the_run() {
    let mut log = Log::new(spec(Some(100), 3));
    log.write(Output::Stdout, b"0\n", 0);
    let mut reader = log.read(FOLLOWED);
    for n in 0..50 {
        assert_eq!(next(&mut reader).await, format!("{n}\n"));
        log.write(Output::Stdout, format!("{}\n", n + 1).as_bytes(), 0);
    }
    log.write(Output::Stdout, b"half", 0);
    log.writer.as_mut().unwrap().end().unwrap();
    assert_eq!(rest(&mut reader).await, "50\nhalf");
    assert_eq!(log.text(FOLLOWED).await, log.text(ALL).await);
}

#[tokio::test]
async fn following_with_a_tail_gives_those_and_all_that_come() {
    let mut log = eight(spec(Some(100), 9));
    let mut two = log.read(LogQuery {
        tail: Some(2),
        ..FOLLOWED
    });
    let mut none = log.read(LogQuery {
        tail: Some(0),
        ..FOLLOWED
    });
    assert_eq!(next(&mut two).await, "o7\n");
    // Until that one waits too.
    let waits = tokio::time::timeout(Duration::from_millis(50), none.next()).await;
    assert!(waits.is_err(), "{waits:?}");
    log.write(Output::Stdout, b"new\nand more\n", 9);
    log.writer.as_mut().unwrap().end().unwrap();
    assert_eq!(rest(&mut two).await, "e8\nnew\nand more\n");
    assert_eq!(rest(&mut none).await, "new\nand more\n");
}

#[tokio::test]
async fn following_ends_when_the_log_is_gone_or_its_time_is_over() {
    let mut log = eight(spec(None, 1));
    let mut gone = log.read(LogQuery {
        tail: Some(1),
        ..FOLLOWED
    });
    assert_eq!(next(&mut gone).await, "e8\n");
    let mut over = log.read(LogQuery {
        until: Some(SystemTime::now() + Duration::from_millis(20)),
        ..FOLLOWED
    });
    assert_eq!(rest(&mut over).await, log.text(ALL).await);
    log.writer = None;
    log.feed = Feed::new();
    drop(log);
    assert_eq!(rest(&mut gone).await, "");
}

#[tokio::test]
async fn a_reader_that_does_not_follow_ends_where_the_log_ended_when_it_began() {
    let mut log = Log::new(spec(Some(5000), 100));
    for n in 0..100 {
        log.write(Output::Stdout, format!("{n}\n").as_bytes(), 0);
    }
    let mut reader = log.read(ALL);
    let mut lines = 0;
    while let Some(record) = reader.next().await {
        record.unwrap();
        lines += 1;
        log.write(Output::Stdout, b"more\nand more\n", 0);
    }
    assert!((100..400).contains(&lines), "{lines}");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_nobody_up_and_loses_nothing_that_is_kept() {
    let mut log = Log::new(spec(None, 1));
    let mut slow = log.read(FOLLOWED);
    let line = [&[b'x'; 9_999][..], b"\n"].concat();
    for _ in 0..1000 {
        log.write(Output::Stdout, &line, 0);
        tokio::task::yield_now().await;
    }
    log.writer.as_mut().unwrap().end().unwrap();
    let mut len = 0;
    while let Some(record) = slow.next().await {
        len += record.unwrap().data.len();
    }
    assert_eq!(len, 10_000_000);
}

#[tokio::test]
async fn files_rotated_away_before_they_were_reached_are_skipped() {
    let mut log = Log::new(spec(Some(100), 2));
    for n in 0..4 {
        log.write(Output::Stdout, format!("{n}\n").as_bytes(), 0);
    }
    let mut reader = log.read(FOLLOWED);
    assert_eq!(next(&mut reader).await, "0\n");
    for n in 4..40 {
        log.write(Output::Stdout, format!("{n}\n").as_bytes(), 0);
    }
    log.writer.as_mut().unwrap().end().unwrap();
    let text = rest(&mut reader).await;
    assert!(text.starts_with("1\n"), "{text}");
    assert!(text.ends_with("36\n37\n38\n39\n"), "{text}");
}

#[tokio::test]
async fn binary_output_comes_back_byte_for_byte() {
    let mut log = Log::new(spec(Some(100_000), 100));
    let mut random = 1u32;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    })
    .take(1_000_000)
    .collect();
    for piece in data.chunks(4096) {
        log.write(Output::Stdout, piece, 0);
    }
    log.writer.as_mut().unwrap().end().unwrap();
    let mut reader = log.read(ALL);
    let mut found = Vec::new();
    while let Some(record) = reader.next().await {
        found.extend_from_slice(&record.unwrap().data);
    }
    assert!(found == data);
}

#[tokio::test]
async fn half_a_line_left_by_a_kill_is_no_record() {
    let mut log = eight(spec(None, 1));
    log.writer = None;
    log.feed = Feed::new();
    let path = super::super::current_file(log.directory.path());
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(br#"{"log":"hal"#);
    fs::write(&path, text).unwrap();
    for tail in [None, Some(8)] {
        let found = log.text(LogQuery { tail, ..ALL }).await;
        assert_eq!(found, "o1\ne2\no3\ne4\no5\ne6\no7\ne8\n");
    }
}

#[tokio::test]
async fn a_file_somebody_else_wrote_into_is_said() {
    let log = eight(spec(None, 1));
    let path = super::super::current_file(log.directory.path());
    let mut text = fs::read(&path).unwrap();
    text[3] = 0;
    fs::write(&path, text).unwrap();
    for tail in [None, Some(100)] {
        let mut reader = log.read(LogQuery { tail, ..ALL });
        let error = reader.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("json.log"), "{error}");
        assert!(reader.next().await.is_none());
    }
}

#[tokio::test]
async fn a_log_that_was_never_written_is_empty_and_none_is_refused_in_dockers_words() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [directory.path(), &directory.path().join("none")] {
        for query in [
            ALL,
            FOLLOWED,
            LogQuery {
                tail: Some(3),
                ..ALL
            },
        ] {
            let mut reader = read(directory, &spec(None, 1), query, &Feed::new()).unwrap();
            assert!(reader.next().await.is_none());
        }
    }
    let refused = read(directory.path(), &LogSpec::None, ALL, &Feed::new()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "configured logging driver does not support reading"
    );
}

/// Linux counts what this thread has read (`rchar` of proc(5)).
fn bytes_read() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn the_tail_of_a_large_log_is_found_without_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut line = Vec::new();
    line::encode(&mut line, Output::Stdout, at(0), &[b'x'; 1000]);
    let path = super::super::current_file(directory.path());
    fs::write(&path, line.repeat(20_000)).unwrap();
    let files = Files {
        directory: directory.path().to_owned(),
        follower: Feed::new().follow(),
        stop: None,
    };
    let query = LogQuery {
        tail: Some(10),
        ..ALL
    };
    let before = bytes_read();
    let place = files.first(&query).unwrap();
    let read = bytes_read() - before;
    assert_eq!(place.position, line.len() as u64 * (20_000 - 10));
    assert!(read < 4 * PIECE as u64, "{read} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn every_tail_is_the_end_of_everything(
        lines in prop::collection::vec((any::<bool>(), 0..3000usize), 1..120),
        max_size in prop_oneof![Just(None), (100..20_000u64).prop_map(Some)],
        tail in 0..150u64,
    ) {
        let mut log = Log::new(spec(max_size, 1000));
        for (n, (stdout, len)) in lines.iter().enumerate() {
            let output = if *stdout { Output::Stdout } else { Output::Stderr };
            log.write(output, format!("{n}{}\n", "x".repeat(*len)).as_bytes(), n as u64);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for (stdout, stderr) in [(true, true), (true, false), (false, true)] {
                let query = LogQuery { stdout, stderr, ..ALL };
                let mut all = log.read(query);
                let mut records = Vec::new();
                while let Some(record) = all.next().await {
                    records.push(record.unwrap());
                }
                let kept = records.len().saturating_sub(tail as usize);
                let mut last = log.read(LogQuery { tail: Some(tail), ..query });
                for expected in &records[kept..] {
                    assert_eq!(&last.next().await.unwrap().unwrap(), expected);
                }
                assert!(last.next().await.is_none());
            }
        });
    }
}
