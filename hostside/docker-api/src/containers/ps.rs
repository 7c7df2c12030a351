//! Processes as `ps` of procps-ng shows them, for `docker top`.
//!
//! Docker runs the host's `ps`; here the VM tells of its processes and this arranges the columns that
//! `ps -ef`, `ps aux` and `-o` lists have. Times of day are UTC.

use std::time::{Duration, SystemTime};

use portlayer::ProcessInfo;

use crate::errors::ApiError;
use crate::time;

/// What is known besides the processes.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// How long it has been on.
    pub uptime: Duration,
    /// Its memory in bytes.
    pub memory: u64,
    /// The time of day.
    pub now: SystemTime,
}

/// A column: how `-o` calls it, its title, and what it holds.
type Column = (
    &'static str,
    &'static str,
    fn(&ProcessInfo, &Machine) -> String,
);

const COLUMNS: [Column; 33] = [
    ("pid", "PID", |p, _| p.pid.to_string()),
    ("tgid", "TGID", |p, _| p.pid.to_string()),
    ("ppid", "PPID", |p, _| p.parent.to_string()),
    ("user", "USER", |p, _| user(p)),
    ("euser", "EUSER", |p, _| user(p)),
    ("uname", "USER", |p, _| user(p)),
    ("uid", "UID", |p, _| p.uid.to_string()),
    ("euid", "EUID", |p, _| p.uid.to_string()),
    ("c", "C", |p, m| format!("{:.0}", cpu_percent(p, m))),
    ("pcpu", "%CPU", |p, m| format!("{:.1}", cpu_percent(p, m))),
    ("%cpu", "%CPU", |p, m| format!("{:.1}", cpu_percent(p, m))),
    ("pmem", "%MEM", memory_percent),
    ("%mem", "%MEM", memory_percent),
    ("vsz", "VSZ", |p, _| (p.virtual_size >> 10).to_string()),
    ("vsize", "VSZ", |p, _| (p.virtual_size >> 10).to_string()),
    ("rss", "RSS", |p, _| (p.resident >> 10).to_string()),
    ("rssize", "RSS", |p, _| (p.resident >> 10).to_string()),
    ("tty", "TTY", |p, _| terminal(p)),
    ("tt", "TT", |p, _| terminal(p)),
    ("tname", "TTY", |p, _| terminal(p)),
    ("stat", "STAT", |p, _| state(p)),
    ("state", "S", |p, _| state(p)),
    ("s", "S", |p, _| state(p)),
    ("stime", "STIME", |p, m| started(p, m)),
    ("start", "STARTED", |p, m| started(p, m)),
    ("etime", "ELAPSED", |p, m| elapsed(age(p, m).as_secs())),
    ("etimes", "ELAPSED", |p, m| age(p, m).as_secs().to_string()),
    ("time", "TIME", |p, _| cpu_time(p)),
    ("cputime", "TIME", |p, _| cpu_time(p)),
    ("nlwp", "NLWP", |p, _| p.threads.to_string()),
    ("comm", "COMMAND", |p, _| name(p)),
    ("cmd", "CMD", |p, _| p.command.clone()),
    ("args", "COMMAND", |p, _| p.command.clone()),
];

fn user(process: &ProcessInfo) -> String {
    match process.uid {
        // The image's names of users are the guest's to know.
        0 => "root".to_owned(),
        uid => uid.to_string(),
    }
}

fn age(process: &ProcessInfo, machine: &Machine) -> Duration {
    machine
        .uptime
        .saturating_sub(Duration::from_millis(process.started_ms))
}

fn cpu_percent(process: &ProcessInfo, machine: &Machine) -> f64 {
    let age = age(process, machine).as_secs_f64();
    if age > 0.0 {
        process.cpu_ms as f64 / 10.0 / age
    } else {
        0.0
    }
}

fn memory_percent(process: &ProcessInfo, machine: &Machine) -> String {
    let part = process.resident as f64 * 100.0 / machine.memory.max(1) as f64;
    format!("{part:.1}")
}

/// A terminal by its device number (proc(5): minor in bits 31-20 and 7-0, major in 15-8).
fn terminal(process: &ProcessInfo) -> String {
    let device = process.terminal;
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) << 8 | minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        5 if minor == 1 => "console".to_owned(),
        229 => format!("hvc{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

fn state(process: &ProcessInfo) -> String {
    char::from(process.state).to_string()
}

/// The time of day if it was in the last 24 hours, else the date.
fn started(process: &ProcessInfo, machine: &Machine) -> String {
    let age = age(process, machine);
    let text = time::rfc3339(machine.now.checked_sub(age).unwrap_or(machine.now));
    if age < Duration::from_secs(24 * 3600) {
        text.get(11..16).unwrap_or_default().to_owned()
    } else {
        text.get(..10).unwrap_or_default().to_owned()
    }
}

fn cpu_time(process: &ProcessInfo) -> String {
    let seconds = process.cpu_ms / 1000;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    if days == 0 {
        rest
    } else {
        format!("{days}-{rest}")
    }
}

fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, hours) => format!("{hours:02}:{rest}"),
        (days, hours) => format!("{days}-{hours:02}:{rest}"),
    }
}

/// The name of a program: the last part of the first word.
fn name(process: &ProcessInfo) -> String {
    let first = process
        .command
        .trim_start_matches('[')
        .split([' ', ']'])
        .next()
        .unwrap_or_default();
    first.rsplit('/').next().unwrap_or_default().to_owned()
}

fn failed(why: impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("ps: {why}"))
}

fn column(name: &str) -> Result<(String, Column), ApiError> {
    let (name, title) = match name.split_once('=') {
        Some((name, title)) => (name, Some(title)),
        None => (name, None),
    };
    let aliased = match name {
        "command" => "args",
        "ucmd" | "ucomm" => "comm",
        "lstart" | "bsdstart" => "start",
        "thcount" => "nlwp",
        "ruser" => "user",
        "ruid" => "uid",
        "bsdtime" => "time",
        "rsz" => "rss",
        other => other,
    };
    let known = COLUMNS.iter().find(|(known, ..)| *known == aliased);
    let column = *known.ok_or_else(|| {
        failed(format!(
            "error: unknown user-defined format specifier \"{name}\""
        ))
    })?;
    // Docker takes no other title for a PID, or it could not find the container's processes.
    match title {
        Some(title) if title.starts_with("PID") && name != "pid" => Err(ApiError::internal(
            format!("specifying \"{name}={title}\" is not allowed"),
        )),
        Some(title) if !title.is_empty() => Ok((title.to_owned(), column)),
        _ => Ok((column.1.to_owned(), column)),
    }
}

fn named(names: &[(&str, &str)]) -> Result<Vec<(String, Column)>, ApiError> {
    let columns = names.iter().map(|(name, title)| {
        let (_, found) = column(name)?;
        Ok(((*title).to_owned(), found))
    });
    columns.collect()
}

/// The columns that arguments of `ps` ask for; `-ef` if there are none.
fn columns(arguments: &str) -> Result<Vec<(String, Column)>, ApiError> {
    let mut words = arguments.split_ascii_whitespace().peekable();
    let mut chosen: Vec<(String, Column)> = Vec::new();
    let (mut full, mut by_user) = (arguments.trim().is_empty(), false);
    while let Some(word) = words.next() {
        let (flags, dashed) = match word.strip_prefix('-') {
            Some(flags) => (flags, true),
            None => (word, false),
        };
        for (place, letter) in flags.char_indices() {
            match letter {
                'e' | 'A' | 'a' | 'x' | 'w' | 'd' | 'H' => {}
                'f' | 'F' => full = true,
                // `-u` with a dash wants users, which `docker top` has no use for.
                'u' if !dashed || flags.contains('a') => by_user = true,
                'o' | 'O' => {
                    let rest = &flags[place + 1..];
                    let list = if rest.is_empty() {
                        words
                            .next()
                            .ok_or_else(|| failed("error: format specification must follow -o"))?
                    } else {
                        rest
                    };
                    for name in list.split(',').filter(|name| !name.is_empty()) {
                        chosen.push(column(name)?);
                    }
                    break;
                }
                _ => {
                    return Err(failed(format!("error: unsupported option ({word})")));
                }
            }
        }
    }
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    if by_user {
        return named(&[
            ("user", "USER"),
            ("pid", "PID"),
            ("pcpu", "%CPU"),
            ("pmem", "%MEM"),
            ("vsz", "VSZ"),
            ("rss", "RSS"),
            ("tty", "TTY"),
            ("stat", "STAT"),
            ("stime", "START"),
            ("time", "TIME"),
            ("args", "COMMAND"),
        ]);
    }
    if full {
        return named(&[
            ("user", "UID"),
            ("pid", "PID"),
            ("ppid", "PPID"),
            ("c", "C"),
            ("stime", "STIME"),
            ("tty", "TTY"),
            ("time", "TIME"),
            ("cmd", "CMD"),
        ]);
    }
    named(&[
        ("pid", "PID"),
        ("tty", "TTY"),
        ("time", "TIME"),
        ("cmd", "CMD"),
    ])
}

/// Titles and rows.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// What `ps ARGUMENTS` shows of these processes.
///
/// # Errors
/// 500, in Docker's words: an option that is not known, or columns without a PID.
pub fn table(
    arguments: &str,
    processes: &[ProcessInfo],
    machine: &Machine,
) -> Result<Table, ApiError> {
    let columns = columns(arguments)?;
    if !columns.iter().any(|(title, _)| title == "PID") {
        return Err(ApiError::internal("Couldn't find PID field in ps output"));
    }
    let rows = processes.iter().map(|process| {
        columns
            .iter()
            .map(|(_, (.., value))| value(process, machine))
            .collect()
    });
    let rows = rows.collect();
    Ok((columns.into_iter().map(|(title, _)| title).collect(), rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> ProcessInfo {
        ProcessInfo {
            pid: 70,
            parent: 1,
            container_pid: 1,
            uid: 0,
            state: b'S',
            cpu_ms: 61_000,
            started_ms: 100_000,
            resident: 4 << 20,
            virtual_size: 10 << 20,
            threads: 3,
            terminal: 136 << 8 | 2,
            command: "/bin/sleep 100".into(),
        }
    }

    fn machine() -> Machine {
        Machine {
            uptime: Duration::from_secs(710),
            memory: 400 << 20,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 + 3_600),
        }
    }

    #[test]
    fn columns_are_those_of_ps() {
        let cases: [(&str, &[&str], &[&str]); 7] = [
            (
                "",
                &["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
                &[
                    "root",
                    "70",
                    "1",
                    "10",
                    "00:49",
                    "pts/2",
                    "00:01:01",
                    "/bin/sleep 100",
                ],
            ),
            (
                "-ef",
                &["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
                &[
                    "root",
                    "70",
                    "1",
                    "10",
                    "00:49",
                    "pts/2",
                    "00:01:01",
                    "/bin/sleep 100",
                ],
            ),
            (
                "aux",
                &[
                    "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME",
                    "COMMAND",
                ],
                &[
                    "root",
                    "70",
                    "10.0",
                    "1.0",
                    "10240",
                    "4096",
                    "pts/2",
                    "S",
                    "00:49",
                    "00:01:01",
                    "/bin/sleep 100",
                ],
            ),
            ("-o pid,comm", &["PID", "COMMAND"], &["70", "sleep"]),
            (
                "-eo pid,etime,nlwp",
                &["PID", "ELAPSED", "NLWP"],
                &["70", "10:10", "3"],
            ),
            ("-opid -o user=WHO", &["PID", "WHO"], &["70", "root"]),
            (
                "-e",
                &["PID", "TTY", "TIME", "CMD"],
                &["70", "pts/2", "00:01:01", "/bin/sleep 100"],
            ),
        ];
        for (arguments, titles, row) in cases {
            let (found, rows) = table(arguments, &[process()], &machine()).unwrap();
            assert_eq!(found, titles, "{arguments}");
            assert_eq!(rows, [row], "{arguments}");
        }
    }

    #[test]
    fn what_ps_refuses_is_refused() {
        let cases = [
            ("-o comm", "Couldn't find PID field in ps output"),
            (
                "-o bogus",
                "ps: error: unknown user-defined format specifier \"bogus\"",
            ),
            ("-o", "ps: error: format specification must follow -o"),
            ("-Z", "ps: error: unsupported option (-Z)"),
            (
                "-o pid -o comm=PID",
                "specifying \"comm=PID\" is not allowed",
            ),
        ];
        for (arguments, words) in cases {
            let error = table(arguments, &[process()], &machine()).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.message.as_str()),
                (500, words)
            );
        }
    }

    #[test]
    fn a_terminal_has_the_name_of_its_device() {
        let cases = [
            (0, "?"),
            (136 << 8, "pts/0"),
            (4 << 8 | 64, "ttyS0"),
            (5 << 8 | 1, "console"),
            (229 << 8, "hvc0"),
        ];
        for (terminal_device, expected) in cases {
            let process = ProcessInfo {
                terminal: terminal_device,
                ..process()
            };
            assert_eq!(terminal(&process), expected);
        }
    }
}
