use std::time::UNIX_EPOCH;

use tempfile::TempDir;

use super::*;

fn image(name: &str) -> Subject {
    Subject::Image {
        id: "sha256:0".to_owned(),
        name: name.to_owned(),
        labels: std::collections::BTreeMap::new(),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn journal() -> (TempDir, Journal) {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    (directory, journal)
}

fn name(event: &Event) -> &str {
    match &event.subject {
        Subject::Image { name, .. } | Subject::Container { name, .. } => name,
    }
}

/// What is queued, without waiting.
fn queued(reader: &mut EventReader) -> Vec<String> {
    let mut names = Vec::new();
    while let Ok(event) = reader.events.try_recv() {
        names.push(name(&event).to_owned());
    }
    names
}

fn emit(journal: &Journal, text: &str, seconds: u64) -> Event {
    journal.emit(image(text), Action::Tag, at(seconds)).unwrap()
}

#[test]
fn times_rise_strictly_whatever_the_clock_says_and_after_a_restart() {
    let (directory, journal) = journal();
    let mut times = vec![emit(&journal, "a", 10).time];
    times.push(emit(&journal, "b", 10).time);
    times.push(emit(&journal, "c", 5).time);
    drop(journal);
    let journal = Journal::open(directory.path()).unwrap();
    times.push(emit(&journal, "d", 1).time);
    times.push(emit(&journal, "e", 20).time);
    assert_eq!(times[0], at(10));
    assert_eq!(times[4], at(20));
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
}

#[test]
fn since_and_until_choose_among_those_kept() {
    let (_directory, journal) = journal();
    for (name, seconds) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        emit(&journal, name, seconds);
    }
    let cases = [
        (None, None, ""),
        (Some(0), None, "abcd"),
        (Some(2), None, "bcd"),
        (Some(2), Some(3), "bc"),
        (None, Some(2), "ab"),
        (Some(4), Some(1), ""),
        (Some(5), None, ""),
    ];
    for (since, until, expected) in cases {
        let mut reader = journal.subscribe(since.map(at), until.map(at));
        assert_eq!(
            queued(&mut reader).concat(),
            expected,
            "since {since:?} until {until:?}"
        );
    }
}

#[tokio::test]
async fn a_listener_gets_the_past_and_what_comes_and_none_twice() {
    let (_directory, journal) = journal();
    emit(&journal, "a", 1);
    let mut reader = journal.subscribe(Some(at(0)), None);
    emit(&journal, "b", 2);
    for expected in ["a", "b"] {
        assert_eq!(name(&reader.next().await.unwrap()), expected);
    }
    emit(&journal, "c", 3);
    assert_eq!(name(&reader.next().await.unwrap()), "c");
    drop(journal);
    assert_eq!(reader.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn listening_ends_at_until_with_nothing_happening() {
    let (_directory, journal) = journal();
    let until = SystemTime::now() + Duration::from_secs(3600);
    let mut reader = journal.subscribe(None, Some(until));
    journal
        .emit(image("a"), Action::Tag, SystemTime::now())
        .unwrap();
    assert_eq!(name(&reader.next().await.unwrap()), "a");
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn listening_until_a_past_moment_ends_with_what_is_kept() {
    let (_directory, journal) = journal();
    emit(&journal, "a", 1);
    let mut reader = journal.subscribe(None, Some(at(2)));
    assert_eq!(name(&reader.next().await.unwrap()), "a");
    assert_eq!(reader.next().await, None);
}

#[tokio::test]
async fn a_listener_too_slow_is_cut_off_after_what_it_was_told_and_holds_nobody_up() {
    let (_directory, journal) = journal();
    let mut slow = journal.subscribe(None, None);
    let mut quick = journal.subscribe(None, None);
    for n in 0..BEHIND as u64 + 10 {
        emit(&journal, "x", n);
        assert!(quick.next().await.is_some());
    }
    assert_eq!(queued(&mut slow).len(), BEHIND);
    assert_eq!(slow.next().await, None);
    assert_eq!(journal.inner().listeners.len(), 1);
}

#[test]
fn readers_that_left_are_forgotten() {
    let (_directory, journal) = journal();
    for _ in 0..100 {
        drop(journal.subscribe(None, None));
    }
    assert!(journal.inner().listeners.len() <= 1);
}

#[test]
fn after_a_kill_at_any_byte_the_whole_events_are_there_and_new_ones_follow() {
    let (directory, journal) = journal();
    for (name, seconds) in [("a", 1), ("b", 2), ("c", 3)] {
        emit(&journal, name, seconds);
    }
    drop(journal);
    let path = directory.path().join("events.json");
    let whole = fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let journal = Journal::open(directory.path()).unwrap();
        let lines = whole[..cut].iter().filter(|b| **b == b'\n').count();
        emit(&journal, "z", 9);
        drop(journal);
        let journal = Journal::open(directory.path()).unwrap();
        let mut reader = journal.subscribe(Some(at(0)), None);
        assert_eq!(
            queued(&mut reader).concat(),
            format!("{}z", &"abc"[..lines]),
            "cut at {cut}"
        );
    }
}

#[test]
fn the_last_events_are_kept_over_generations_and_the_files_stay_bounded() {
    let (directory, mut journal) = journal();
    for n in 0..3 * KEPT as u64 + 5 {
        emit(&journal, &n.to_string(), n);
        if n % 1000 == 0 {
            journal = Journal::open(directory.path()).unwrap();
        }
    }
    let expected: Vec<String> = (2 * KEPT + 5..3 * KEPT + 5)
        .map(|n| n.to_string())
        .collect();
    for journal in [journal, Journal::open(directory.path()).unwrap()] {
        assert_eq!(queued(&mut journal.subscribe(Some(at(0)), None)), expected);
    }
    for name in ["events.json", "events.json.1"] {
        let text = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(text.lines().count() <= KEPT, "{name}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn events_with_much_in_them_are_bounded_by_their_size() {
    let (directory, journal) = journal();
    let long = "x".repeat(1024 * 1024);
    for n in 0..30 {
        emit(&journal, &long, n);
    }
    assert!(journal.inner().recent.len() < 9);
    let size = |name| fs::metadata(directory.path().join(name)).unwrap().len();
    assert!(size("events.json") + size("events.json.1") < 2 * LONGEST + 3 * 1024 * 1024);
}

#[test]
fn recovery_can_ask_whether_something_was_told() {
    let (directory, journal) = journal();
    emit(&journal, "a", 1);
    drop(journal);
    let journal = Journal::open(directory.path()).unwrap();
    assert!(journal.contains(|event| name(event) == "a" && event.time == at(1)));
    assert!(!journal.contains(|event| name(event) == "b"));
}

#[test]
fn a_line_of_a_newer_version_is_left_out_and_the_others_are_read() {
    let (directory, journal) = journal();
    emit(&journal, "a", 1);
    drop(journal);
    let path = directory.path().join("events.json");
    let mut text = fs::read(&path).unwrap();
    let newer = String::from_utf8(text.clone())
        .unwrap()
        .replace("\"tag\"", "\"teleport\"");
    text.splice(0..0, newer.into_bytes());
    fs::write(&path, text).unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(queued(&mut journal.subscribe(Some(at(0)), None)), ["a"]);
}
