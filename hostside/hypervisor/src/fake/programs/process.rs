//! Programs about processes.

use std::time::Duration;

use super::{Call, Failure, Outcome};
use crate::fake::files::describe;
use crate::fake::kernel::sys::Sys;
use crate::fake::kernel::{HIDDEN, Pid, signal};

/// `kill`: what it prints. `jobs` are what `%N` names.
///
/// # Errors
/// No such process, no such signal, no permission.
pub fn send(sys: &Sys, arguments: &[String], jobs: &[Pid]) -> Result<String, Failure> {
    let mut number = signal::TERM;
    let mut rest = arguments;
    if let [first, after @ ..] = rest {
        let named = match first.as_str() {
            "-l" => {
                return Ok(
                    match after.first().and_then(|text| text.parse::<u8>().ok()) {
                        Some(wanted) => {
                            let wanted = if wanted > 128 { wanted - 128 } else { wanted };
                            format!("{}\n", signal::name(wanted).unwrap_or("?"))
                        }
                        None => {
                            let names: Vec<&str> = (1..=31).filter_map(signal::name).collect();
                            names.join(" ") + "\n"
                        }
                    },
                );
            }
            "-s" | "-n" => {
                let (name, after) = after
                    .split_first()
                    .ok_or_else(|| Failure::usage("option requires an argument -- 's'"))?;
                rest = after;
                Some(name.as_str())
            }
            "--" => {
                rest = after;
                None
            }
            text => match text.strip_prefix('-') {
                Some(name) => {
                    rest = after;
                    Some(name)
                }
                None => None,
            },
        };
        if let Some(name) = named {
            number = signal::parse(name)
                .ok_or_else(|| Failure::new(1, format!("bad signal name '{name}'")))?;
        }
    }
    if let [first, after @ ..] = rest
        && first == "--"
    {
        rest = after;
    }
    if rest.is_empty() {
        return Err(Failure::usage("you need to specify whom to kill"));
    }
    let mut failed = None;
    for text in rest {
        let pid = match text.strip_prefix('%') {
            Some(job) => job
                .parse::<usize>()
                .ok()
                .and_then(|job| jobs.get(job.wrapping_sub(1)))
                .map(|pid| i64::from(*pid)),
            None => text.parse().ok(),
        };
        let Some(pid) = pid else {
            return Err(Failure::new(1, format!("invalid number '{text}'")));
        };
        if let Err(errno) = sys.kill(pid, number) {
            let why = describe(errno);
            failed = Some(Failure::new(1, format!("can't kill pid {pid}: {why}")));
        }
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(String::new()),
    }
}

pub async fn kill(call: &Call) -> Outcome {
    let list = send(&call.sys, &call.argv[1..], &[])?;
    call.print(list).await?;
    Ok(0)
}

/// A process as `ps` has it: pid, user, time, command, state, parent.
struct Row {
    pid: Pid,
    uid: u32,
    time: Duration,
    command: String,
    letter: char,
    parent: Pid,
}

fn rows(sys: &Sys) -> Vec<Row> {
    let kernel = sys.kernel();
    kernel
        .processes
        .range(..HIDDEN)
        .map(|(pid, process)| Row {
            pid: *pid,
            uid: process.who.uid,
            time: process.cpu,
            command: if process.lives() {
                process.argv.join(" ")
            } else {
                format!("[{}]", process.name())
            },
            letter: char::from(process.letter(*pid == sys.pid)),
            parent: process.parent,
        })
        .collect()
}

async fn user_name(call: &Call, uid: u32) -> String {
    let passwd = call.read("/etc/passwd").await.unwrap_or_default();
    String::from_utf8_lossy(&passwd)
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| uid.to_string())
}

pub async fn ps(call: &Call) -> Outcome {
    let mut columns = vec!["pid", "user", "time", "args"];
    let mut arguments = call.argv[1..].iter();
    while let Some(argument) = arguments.next() {
        if let Some(flags) = argument.strip_prefix('-').or(Some(argument))
            && flags.ends_with('o')
            && let Some(list) = arguments.next()
        {
            columns = list.split(',').collect();
        }
    }
    let plain = columns == ["pid", "user", "time", "args"];
    let mut text = String::new();
    if plain {
        text += "PID   USER     TIME  COMMAND\n";
    } else {
        let heads: Vec<String> = columns
            .iter()
            .map(|column| match *column {
                "args" | "comm" | "cmd" => "COMMAND".to_owned(),
                column => column.trim_end_matches('=').to_uppercase(),
            })
            .collect();
        if !columns.iter().all(|column| column.ends_with('=')) {
            text += &(heads.join(" ") + "\n");
        }
    }
    for row in rows(&call.sys) {
        let user = user_name(call, row.uid).await;
        let seconds = row.time.as_secs();
        let time = format!("{}:{:02}", seconds / 60, seconds % 60);
        if plain {
            text += &format!("{:>5} {user:<8} {time:>5} {}\n", row.pid, row.command);
            continue;
        }
        let cells: Vec<String> = columns
            .iter()
            .map(|column| match column.trim_end_matches('=') {
                "pid" => format!("{:>5}", row.pid),
                "ppid" => format!("{:>5}", row.parent),
                "user" => format!("{user:<8}"),
                "uid" => row.uid.to_string(),
                "time" => format!("{time:>5}"),
                "stat" | "s" => row.letter.to_string(),
                "comm" => row
                    .command
                    .split(' ')
                    .next()
                    .and_then(|path| path.rsplit('/').next())
                    .unwrap_or("")
                    .to_owned(),
                _ => row.command.clone(),
            })
            .collect();
        text += &(cells.join(" ") + "\n");
    }
    call.print(text).await?;
    Ok(0)
}

fn of_name<'a>(rows: &'a [Row], name: &'a str) -> impl Iterator<Item = Pid> + 'a {
    rows.iter()
        .filter(move |row| {
            let program = row.command.split(' ').next().unwrap_or("");
            program.rsplit('/').next() == Some(name)
        })
        .map(|row| row.pid)
}

pub async fn pidof(call: &Call) -> Outcome {
    let rows = rows(&call.sys);
    let pids: Vec<String> = call.argv[1..]
        .iter()
        .flat_map(|name| of_name(&rows, name))
        .map(|pid| pid.to_string())
        .collect();
    if pids.is_empty() {
        return Ok(1);
    }
    call.print(pids.join(" ") + "\n").await?;
    Ok(0)
}

pub async fn killall(call: &Call) -> Outcome {
    let mut number = signal::TERM;
    let mut status = 0;
    for argument in &call.argv[1..] {
        if let Some(name) = argument.strip_prefix('-') {
            number = signal::parse(name)
                .ok_or_else(|| Failure::new(1, format!("bad signal name '{name}'")))?;
            continue;
        }
        let pids: Vec<Pid> = of_name(&rows(&call.sys), argument)
            .filter(|pid| *pid != call.sys.pid)
            .collect();
        if pids.is_empty() {
            call.complain(format!("{argument}: no process killed"))
                .await;
            status = 1;
        }
        for pid in pids {
            let _ = call.sys.kill(i64::from(pid), number);
        }
    }
    Ok(status)
}
