//! Programs that tell of the machine, the user and time.

use std::fmt::Write as _;
use std::time::Duration;

use super::words::{run, spawn};
use super::{Call, Failure, Outcome};
use crate::fake::files::Errno;
use crate::fake::files::mounts::Source;
use crate::fake::files::tree::Tree;
use crate::fake::kernel::Disposition;
use crate::fake::kernel::signal;
use crate::fake::kernel::sys::{Patience, Sys, Waited};
use crate::fake::kernel::terminal::Modes;
use crate::fake::lock;

pub async fn yes(_: &Call) -> Outcome {
    Ok(0)
}

pub async fn no(_: &Call) -> Outcome {
    Ok(1)
}

/// A time as sleep(1) takes it; nothing is for ever.
fn duration(text: &str) -> Result<Option<Duration>, Failure> {
    if matches!(text, "infinity" | "inf") {
        return Ok(None);
    }
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3600.0),
        Some((at, 'd')) => (&text[..at], 86400.0),
        _ => (text, 1.0),
    };
    let seconds = digits
        .parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
        .ok_or_else(|| Failure::new(1, format!("invalid number '{text}'")))?;
    Ok(Duration::try_from_secs_f64(seconds * unit).ok())
}

pub async fn sleep(call: &Call) -> Outcome {
    let mut all = Some(Duration::ZERO);
    if call.argv.len() < 2 {
        return Err(Failure::usage("missing operand"));
    }
    for text in &call.argv[1..] {
        let time = duration(text)?;
        all = all.zip(time).and_then(|(a, b)| a.checked_add(b));
    }
    let _ = call.sys.sleep(all).await;
    Ok(0)
}

/// Waits for ever.
pub async fn pause(call: &Call) -> Outcome {
    loop {
        call.sys.pause().await;
    }
}

pub async fn timeout(call: &Call) -> Outcome {
    let options = call.options_of_prefix("s:k:")?;
    let [time, command @ ..] = options.operands.as_slice() else {
        return Err(Failure::usage("missing operand"));
    };
    let number = match options.value('s') {
        Some(name) => signal::parse(name)
            .ok_or_else(|| Failure::new(1, format!("bad signal name '{name}'")))?,
        None => signal::TERM,
    };
    let time = duration(time)?;
    let child = spawn(call, command.to_vec())?;
    let watched = call.sys.fork(move |sys: Sys| {
        Box::pin(async move {
            let _ = sys.sleep(time).await;
            0
        })
    });
    let watch = watched.map_err(|errno| Failure::on("fork", errno))?;
    match call.sys.wait(None, false, Patience::Endless).await {
        Ok(Waited::Ended(ended, status)) if ended == child => {
            let _ = call.sys.kill(i64::from(watch), signal::KILL);
            Ok(status.shell())
        }
        _ => {
            let _ = call.sys.kill(i64::from(child), number);
            let _ = call.sys.wait(Some(child), false, Patience::Endless).await;
            // As busybox; coreutils says 124.
            Ok(128 + number)
        }
    }
}

pub async fn nohup(call: &Call) -> Outcome {
    call.sys
        .set_disposition(signal::HUP, Some(Disposition::Ignore));
    run(call, call.argv[1..].to_vec()).await
}

pub async fn pwd(call: &Call) -> Outcome {
    call.print(format!("{}\n", call.sys.directory())).await?;
    Ok(0)
}

pub async fn env(call: &Call) -> Outcome {
    let mut environment = call.sys.environment();
    if call.name() == "printenv" {
        let mut status = 0;
        let names = &call.argv[1..];
        for name in names {
            match environment
                .iter()
                .rev()
                .find_map(|variable| variable.strip_prefix(name.as_str())?.strip_prefix('='))
            {
                Some(value) => call.print(format!("{value}\n")).await?,
                None => status = 1,
            }
        }
        if !names.is_empty() {
            return Ok(status);
        }
    }
    let mut rest = call.argv[1..].iter().peekable();
    if rest
        .next_if(|argument| *argument == "-i" || *argument == "-")
        .is_some()
    {
        environment.clear();
    }
    while let Some(flag) = rest.next_if(|argument| *argument == "-u") {
        let _ = flag;
        if let Some(name) = rest.next() {
            environment.retain(|variable| !variable.starts_with(&format!("{name}=")));
        }
    }
    while let Some(variable) = rest.next_if(|argument| argument.contains('=')) {
        let name = variable.split('=').next().unwrap_or("");
        environment.retain(|known| !known.starts_with(&format!("{name}=")));
        environment.push(variable.clone());
    }
    let command: Vec<String> = rest.cloned().collect();
    if command.is_empty() {
        let text: String = environment
            .iter()
            .map(|variable| format!("{variable}\n"))
            .collect();
        call.print(text).await?;
        return Ok(0);
    }
    call.sys.own(|process| process.environment = environment);
    run(call, command).await
}

/// Names of /etc/passwd or /etc/group, by number.
async fn names(call: &Call, path: &str) -> Vec<(u32, String)> {
    let text = match call.read(path).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    };
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let number = fields.nth(1)?.parse().ok()?;
            Some((number, name))
        })
        .collect()
}

fn name_of(names: &[(u32, String)], number: u32) -> Option<&str> {
    names
        .iter()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| name.as_str())
}

pub async fn id(call: &Call) -> Outcome {
    let options = call.options("ugnGr")?;
    let users = names(call, "/etc/passwd").await;
    let groups = names(call, "/etc/group").await;
    let who = call
        .sys
        .own(|process| Some(process.who.clone()))
        .unwrap_or_default();
    let word = |names: &[(u32, String)], number: u32| {
        if options.has('n') {
            name_of(names, number).map_or_else(|| number.to_string(), str::to_owned)
        } else {
            number.to_string()
        }
    };
    let mut all = vec![who.gid];
    all.extend(who.groups.iter().filter(|gid| **gid != who.gid));
    let line = if options.has('u') {
        word(&users, who.uid)
    } else if options.has('g') {
        word(&groups, who.gid)
    } else if options.has('G') {
        let all: Vec<String> = all.iter().map(|gid| word(&groups, *gid)).collect();
        all.join(" ")
    } else {
        let named = |names: &[(u32, String)], number: u32| match name_of(names, number) {
            Some(name) => format!("{number}({name})"),
            None => number.to_string(),
        };
        let mut line = format!(
            "uid={} gid={}",
            named(&users, who.uid),
            named(&groups, who.gid)
        );
        let all: Vec<String> = all.iter().map(|gid| named(&groups, *gid)).collect();
        let _ = write!(line, " groups={}", all.join(","));
        line
    };
    call.print(line + "\n").await?;
    Ok(0)
}

pub async fn whoami(call: &Call) -> Outcome {
    let users = names(call, "/etc/passwd").await;
    let uid = call.sys.own(|process| process.who.uid);
    match name_of(&users, uid) {
        Some(name) => {
            call.print(format!("{name}\n")).await?;
            Ok(0)
        }
        None => Err(Failure::new(1, format!("unknown uid {uid}"))),
    }
}

pub async fn hostname(call: &Call) -> Outcome {
    let options = call.options("sfdi")?;
    if let Some(name) = options.operands.first() {
        let uid = call.sys.own(|process| process.who.uid);
        if uid != 0 {
            return Err(Failure::on("sethostname", Errno::PERM));
        }
        call.sys.kernel().hostname.clone_from(name);
        return Ok(0);
    }
    let line = {
        let kernel = call.sys.kernel();
        if options.has('d') {
            kernel.domainname.clone()
        } else if options.has('f') && !kernel.domainname.is_empty() {
            format!("{}.{}", kernel.hostname, kernel.domainname)
        } else {
            kernel.hostname.clone()
        }
    };
    call.print(line + "\n").await?;
    Ok(0)
}

pub async fn uname(call: &Call) -> Outcome {
    let options = call.options("asnrvmpo")?;
    let hostname = call.sys.kernel().hostname.clone();
    let words: Vec<String> = [
        ('s', "Linux".to_owned()),
        ('n', hostname),
        ('r', "6.1.0".to_owned()),
        ('v', "#1 SMP simulated".to_owned()),
        ('m', "x86_64".to_owned()),
        ('o', "GNU/Linux".to_owned()),
    ]
    .into_iter()
    .filter(|(flag, _)| {
        let none = "asnrvmpo".chars().all(|flag| !options.has(flag));
        options.has('a') || options.has(*flag) || (none && *flag == 's')
    })
    .map(|(_, word)| word)
    .collect();
    call.print(words.join(" ") + "\n").await?;
    Ok(0)
}

/// Year, month, day, hour, minute, second, day of the week, in UTC.
pub fn civil(unix: i64) -> [i64; 7] {
    let days = unix.div_euclid(86_400);
    let rest = unix.rem_euclid(86_400);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-compatible
    // low-level date algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    [
        year,
        month,
        day,
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        (days + 4).rem_euclid(7),
    ]
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

/// strftime(3), in UTC and the C locale.
pub fn formatted(format: &str, unix: i64, nanos: u32) -> String {
    let [year, month, day, hour, minute, second, weekday] = civil(unix);
    let name = |names: &[&'static str], at: i64| {
        usize::try_from(at)
            .ok()
            .and_then(|at| names.get(at).copied())
            .unwrap_or("")
    };
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let piece = match chars.next() {
            Some('Y') => format!("{year}"),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('s') => format!("{unix}"),
            Some('N') => format!("{nanos:09}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('b') => name(&MONTHS, month - 1).to_owned(),
            Some('a') => name(&DAYS, weekday).to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('n') => "\n".to_owned(),
            Some('%') => "%".to_owned(),
            other => format!("%{}", other.map_or(String::new(), String::from)),
        };
        text += &piece;
    }
    text
}

pub async fn date(call: &Call) -> Outcome {
    let options = call.options("ud:RI")?;
    let now = call.sys.now();
    let mut unix = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut nanos = now.subsec_nanos();
    if let Some(text) = options.value('d') {
        unix = text
            .strip_prefix('@')
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Failure::new(1, format!("invalid date '{text}'")))?;
        nanos = 0;
    }
    let format = match options.operands.first() {
        Some(format) => format
            .strip_prefix('+')
            .ok_or_else(|| Failure::new(1, format!("invalid date '{format}'")))?,
        None if options.has('I') => "%F",
        None => "%a %b %e %T %Z %Y",
    };
    call.print(formatted(format, unix, nanos) + "\n").await?;
    Ok(0)
}

pub async fn nproc(call: &Call) -> Outcome {
    let processors = call.sys.kernel().processors;
    call.print(format!("{processors}\n")).await?;
    Ok(0)
}

pub async fn tty(call: &Call) -> Outcome {
    match call.sys.terminal_of(0) {
        Some(number) => {
            call.print(format!("/dev/pts/{number}\n")).await?;
            Ok(0)
        }
        None => {
            call.print("not a tty\n").await?;
            Ok(1)
        }
    }
}

pub async fn stty(call: &Call) -> Outcome {
    let Some(number) = call.sys.terminal_of(0) else {
        return Err(Failure::on("standard input", Errno::NOTTY));
    };
    let mut output = String::new();
    let mut arguments = call.argv[1..].iter();
    if call.argv.len() == 1 {
        output += "speed 38400 baud; line = 0;\n";
    }
    while let Some(argument) = arguments.next() {
        let mut kernel = call.sys.kernel();
        let Some(terminal) = kernel.terminal(number) else {
            break;
        };
        let modes = &mut terminal.modes;
        match argument.as_str() {
            "size" => {
                let _ = writeln!(output, "{} {}", terminal.rows, terminal.columns);
            }
            "-a" => {
                let (rows, columns) = (terminal.rows, terminal.columns);
                let _ = writeln!(
                    output,
                    "speed 38400 baud; rows {rows}; columns {columns}; line = 0;"
                );
            }
            "-echo" => modes.echo = false,
            "echo" => modes.echo = true,
            "-icanon" => modes.lines = false,
            "icanon" => modes.lines = true,
            "-onlcr" | "-opost" => modes.returns = false,
            "onlcr" | "opost" => modes.returns = true,
            "-isig" => modes.signals = false,
            "isig" => modes.signals = true,
            "-icrnl" => modes.newlines = false,
            "icrnl" => modes.newlines = true,
            "raw" => {
                *modes = Modes {
                    lines: false,
                    echo: modes.echo,
                    signals: false,
                    returns: false,
                    newlines: false,
                }
            }
            "sane" | "cooked" => *modes = Modes::SANE,
            "rows" => terminal.rows = number_of(arguments.next())?,
            "cols" | "columns" => terminal.columns = number_of(arguments.next())?,
            other => return Err(Failure::new(1, format!("invalid argument '{other}'"))),
        }
    }
    call.print(output).await?;
    Ok(0)
}

fn number_of(text: Option<&String>) -> Result<u16, Failure> {
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::new(1, "invalid number"))
}

pub async fn mount(call: &Call) -> Outcome {
    if call.argv.len() > 1 {
        return Err(Failure::new(1, "permission denied (are you root?)"));
    }
    let text: String = {
        let kernel = call.sys.kernel();
        kernel
            .mounts
            .iter()
            .map(|mount| {
                let kind = match mount.source {
                    Source::Disk => "ext4",
                    Source::Memory => "tmpfs",
                    Source::Proc => "proc",
                };
                let access = if mount.read_only { "ro" } else { "rw" };
                format!("{kind} on {} type {kind} ({access})\n", mount.target)
            })
            .collect()
    };
    call.print(text).await?;
    Ok(0)
}

pub async fn free(call: &Call) -> Outcome {
    let options = call.options("bkmgh")?;
    let unit = if options.has('m') {
        1 << 20
    } else if options.has('b') {
        1
    } else {
        1 << 10
    };
    let (total, used) = {
        let kernel = call.sys.kernel();
        (kernel.memory / unit, kernel.resident() / unit)
    };
    let free = total.saturating_sub(used);
    call.print(format!(
        "              total        used        free      shared  buff/cache   available\n\
         Mem:    {total:>11} {used:>11} {free:>11} {:>11} {:>11} {free:>11}\n\
         Swap:   {:>11} {:>11} {:>11}\n",
        0, 0, 0, 0, 0
    ))
    .await?;
    Ok(0)
}

pub async fn df(call: &Call) -> Outcome {
    let mut text =
        String::from("Filesystem           1K-blocks      Used Available Use% Mounted on\n");
    {
        let kernel = call.sys.kernel();
        for mount in kernel.mounts.iter() {
            let tree: std::sync::MutexGuard<'_, Tree> = lock(&mount.disk);
            let (total, used) = (tree.limit() / 1024, tree.used() / 1024);
            if mount.source == Source::Proc {
                continue;
            }
            let percent = (used * 100).checked_div(total).unwrap_or(0);
            let name = match mount.source {
                Source::Disk => "/dev/root",
                _ => "tmpfs",
            };
            let _ = writeln!(
                text,
                "{name:<20} {total:>9} {used:>9} {:>9} {percent:>3}% {}",
                total.saturating_sub(used),
                mount.target
            );
        }
    }
    call.print(text).await?;
    Ok(0)
}

pub async fn uptime(call: &Call) -> Outcome {
    let up = call.sys.kernel().uptime().as_secs();
    call.print(format!(
        " up {} min,  load average: 0.00, 0.00, 0.00\n",
        up / 60
    ))
    .await?;
    Ok(0)
}

/// The file of a program's name, by the process's own PATH.
pub fn find(sys: &Sys, name: &str) -> Option<String> {
    if name.contains('/') {
        return Some(name.to_owned());
    }
    let environment = sys.environment();
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or("/usr/sbin:/usr/bin:/sbin:/bin")
        .to_owned();
    path.split(':')
        .map(|directory| format!("{}/{name}", directory.trim_end_matches('/')))
        .find(|path| {
            sys.stat(path, true)
                .is_ok_and(|stat| !stat.node.is_directory() && stat.node.mode & 0o111 != 0)
        })
}

pub async fn which(call: &Call) -> Outcome {
    let mut status = 0;
    for name in &call.argv[1..] {
        match find(&call.sys, name) {
            Some(path) => call.print(format!("{path}\n")).await?,
            None => status = 1,
        }
    }
    Ok(status)
}

/// `su USER -c COMMAND`, from root.
pub async fn su(call: &Call) -> Outcome {
    let options = call.options("c:ls:")?;
    let user = options
        .operands
        .iter()
        .find(|operand| *operand != "-")
        .map_or("root", String::as_str);
    let passwd = call.read("/etc/passwd").await?;
    let text = String::from_utf8_lossy(&passwd).into_owned();
    let entry = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&user) && fields.len() > 5)
        .ok_or_else(|| Failure::new(1, format!("unknown user {user}")))?;
    if call.sys.own(|process| process.who.uid) != 0 {
        return Err(Failure::new(1, "must be suid to work properly"));
    }
    let number = |at: usize| {
        entry
            .get(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let (uid, gid) = (number(2), number(3));
    call.sys.own(|process| {
        process.who.uid = uid;
        process.who.gid = gid;
        process.who.groups.clear();
    });
    let mut argv = vec!["sh".to_owned()];
    if let Some(command) = options.value('c') {
        argv.extend(["-c".to_owned(), command.to_owned()]);
    }
    run(call, argv).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, expected) in [
            (0, "1970-01-01 00:00:00 Thu"),
            (951_782_400, "2000-02-29 00:00:00 Tue"),
            (1_700_000_000, "2023-11-14 22:13:20 Tue"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun"),
        ] {
            assert_eq!(formatted("%F %T %a", unix, 0), expected);
        }
    }
}
