//! Programs that work on lines and words.

use super::{Call, Failure, Outcome, load_now};
use crate::fake::files::Errno;
use crate::fake::kernel::sys::{Patience, Waited};
use crate::fake::shell::in_class;

pub async fn wc(call: &Call) -> Outcome {
    let options = call.options("lwcmL")?;
    let any = "lwcm".chars().any(|flag| options.has(flag));
    let mut operands = options.operands.clone();
    let from_input = operands.is_empty();
    if from_input {
        operands.push("-".into());
    }
    let (mut totals, mut status) = ([0usize; 3], 0);
    let width = if from_input || any { 0 } else { 9 };
    let single = "lwcm".chars().filter(|flag| options.has(*flag)).count() == 1;
    let line = |counts: [usize; 3], name: &str| {
        let mut columns = Vec::new();
        for (flag, count) in ['l', 'w', 'c'].into_iter().zip(counts) {
            let wanted = options.has(flag) || (flag == 'c' && options.has('m')) || !any;
            if wanted {
                let width = if single { 0 } else { width.max(7) };
                columns.push(format!("{count:>width$}"));
            }
        }
        let mut line = columns.join(" ");
        if !from_input {
            line = format!("{line} {name}");
        }
        line + "\n"
    };
    for path in &operands {
        match call.read(path).await {
            Ok(bytes) => {
                let counts = [
                    bytes.iter().filter(|byte| **byte == b'\n').count(),
                    bytes
                        .split(u8::is_ascii_whitespace)
                        .filter(|word| !word.is_empty())
                        .count(),
                    bytes.len(),
                ];
                for (total, count) in totals.iter_mut().zip(counts) {
                    *total += count;
                }
                call.print(line(counts, path)).await?;
            }
            Err(failure) => {
                call.complain(failure.message).await;
                status = 1;
            }
        }
    }
    if operands.len() > 1 {
        call.print(line(totals, "total")).await?;
    }
    Ok(status)
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    body.split(|byte| *byte == b'\n').collect()
}

fn joined(lines: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for line in lines {
        all.extend_from_slice(line);
        all.push(b'\n');
    }
    all
}

/// The number a line starts with.
fn leading_number(line: &[u8]) -> f64 {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_start();
    let end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && *c == '-')))
        .map_or(text.len(), |(at, _)| at);
    text[..end].parse().unwrap_or(0.0)
}

pub async fn sort(call: &Call) -> Outcome {
    let options = call.options("nruk:t:fo:b")?;
    let (bytes, status) = call.read_operands(&options.operands).await;
    let mut sorted = lines(&bytes);
    let key = options
        .value('k')
        .and_then(|key| key.split([',', '.', 'n']).next()?.parse::<usize>().ok());
    let numeric = options.has('n') || options.value('k').is_some_and(|key| key.contains('n'));
    let separator = options.value('t').and_then(|text| text.bytes().next());
    let field = |line: &[u8]| -> Vec<u8> {
        let Some(key) = key else {
            return line.to_vec();
        };
        let fields: Vec<&[u8]> = match separator {
            Some(separator) => line.split(|byte| *byte == separator).collect(),
            None => line
                .split(u8::is_ascii_whitespace)
                .filter(|field| !field.is_empty())
                .collect(),
        };
        fields
            .get(key.saturating_sub(1))
            .unwrap_or(&&b""[..])
            .to_vec()
    };
    sorted.sort_by(|a, b| {
        let (x, y) = (field(a), field(b));
        let order = if numeric {
            leading_number(&x).total_cmp(&leading_number(&y))
        } else if options.has('f') {
            x.to_ascii_lowercase().cmp(&y.to_ascii_lowercase())
        } else {
            x.cmp(&y)
        };
        let order = order.then_with(|| a.cmp(b));
        if options.has('r') {
            order.reverse()
        } else {
            order
        }
    });
    if options.has('u') {
        sorted.dedup();
    }
    call.print(joined(&sorted)).await?;
    Ok(status)
}

pub async fn uniq(call: &Call) -> Outcome {
    let options = call.options("cdu")?;
    let (bytes, status) = call.read_operands(&options.operands).await;
    let mut groups: Vec<(usize, &[u8])> = Vec::new();
    for line in lines(&bytes) {
        match groups.last_mut() {
            Some((count, last)) if *last == line => *count += 1,
            _ => groups.push((1, line)),
        }
    }
    let mut output = Vec::new();
    for (count, line) in groups {
        if (options.has('d') && count < 2) || (options.has('u') && count > 1) {
            continue;
        }
        if options.has('c') {
            output.extend(format!("{count:>7} ").into_bytes());
        }
        output.extend_from_slice(line);
        output.push(b'\n');
    }
    call.print(output).await?;
    Ok(status)
}

/// A set of `tr`, its ranges and classes written out.
fn set(text: &str) -> Vec<u8> {
    let text = text
        .replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\r", "\r")
        .replace("\\0", "\0")
        .replace("\\\\", "\\");
    let bytes = text.as_bytes();
    let mut all = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"[:")
            && let Some(end) = text.get(at..).and_then(|rest| rest.find(":]"))
        {
            let name = &text[at + 2..at + end];
            all.extend((0..=127u8).filter(|byte| in_class(name, char::from(*byte))));
            at += end + 2;
        } else if at + 2 < bytes.len() && bytes[at + 1] == b'-' {
            all.extend(bytes[at]..=bytes[at + 2]);
            at += 3;
        } else {
            all.push(bytes[at]);
            at += 1;
        }
    }
    all
}

pub async fn tr(call: &Call) -> Outcome {
    let options = call.options("dscC")?;
    let Some(first) = options.operands.first() else {
        return Err(Failure::usage("usage: tr [-cds] STRING1 [STRING2]"));
    };
    let mut from = set(first);
    if options.has('c') || options.has('C') {
        from = (0..=255).filter(|byte| !from.contains(byte)).collect();
    }
    let to = options
        .operands
        .get(1)
        .map(|text| set(text))
        .unwrap_or_default();
    let squeezed = if options.has('s') {
        if to.is_empty() {
            from.clone()
        } else {
            to.clone()
        }
    } else {
        Vec::new()
    };
    let mut before = None;
    loop {
        let bytes = call
            .sys
            .read(0, super::CHUNK)
            .await
            .map_err(|errno| Failure::on("read error", errno))?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut output = Vec::with_capacity(bytes.len());
        for byte in bytes {
            let mapped = match from.iter().position(|known| *known == byte) {
                Some(_) if options.has('d') => continue,
                Some(at) => to.get(at).or(to.last()).copied().unwrap_or(byte),
                None => byte,
            };
            if squeezed.contains(&mapped) && before == Some(mapped) {
                continue;
            }
            before = Some(mapped);
            output.push(mapped);
        }
        call.print(output).await?;
    }
}

/// Numbers and ranges of `cut`, from 1.
fn ranges(text: &str) -> Vec<(usize, usize)> {
    text.split(',')
        .map(|part| match part.split_once('-') {
            Some((low, high)) => (low.parse().unwrap_or(1), high.parse().unwrap_or(usize::MAX)),
            None => {
                let one = part.parse().unwrap_or(0);
                (one, one)
            }
        })
        .collect()
}

pub async fn cut(call: &Call) -> Outcome {
    let options = call.options("d:f:c:b:s")?;
    let (bytes, status) = call.read_operands(&options.operands).await;
    let delimiter = options.value('d').unwrap_or("\t");
    let chosen = options
        .value('f')
        .or(options.value('c'))
        .or(options.value('b'))
        .ok_or_else(|| Failure::usage("expected a list of bytes, characters, or fields"))?;
    let chosen = ranges(chosen);
    let wanted = |index: usize| {
        chosen
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&(index + 1)))
    };
    let mut output = String::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        if options.value('f').is_none() {
            output.extend(
                line.chars()
                    .enumerate()
                    .filter(|(i, _)| wanted(*i))
                    .map(|(_, c)| c),
            );
        } else if line.contains(delimiter) {
            let fields: Vec<&str> = line
                .split(delimiter)
                .enumerate()
                .filter(|(index, _)| wanted(*index))
                .map(|(_, field)| field)
                .collect();
            output += &fields.join(delimiter);
        } else if options.has('s') {
            continue;
        } else {
            output += line;
        }
        output.push('\n');
    }
    call.print(output).await?;
    Ok(status)
}

pub async fn rev(call: &Call) -> Outcome {
    let (bytes, status) = call.read_operands(&call.argv[1..]).await;
    let output: String = String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| line.chars().rev().collect::<String>() + "\n")
        .collect();
    call.print(output).await?;
    Ok(status)
}

pub async fn tac(call: &Call) -> Outcome {
    let (bytes, status) = call.read_operands(&call.argv[1..]).await;
    let mut reversed = lines(&bytes);
    reversed.reverse();
    call.print(joined(&reversed)).await?;
    Ok(status)
}

pub async fn xargs(call: &Call) -> Outcome {
    let mut rest = call.argv[1..].iter().peekable();
    let (mut most, mut replaced, mut separator) = (usize::MAX, None, None);
    while let Some(flag) = rest.next_if(|argument| argument.starts_with('-')) {
        match flag.as_str() {
            "-n" => most = rest.next().and_then(|text| text.parse().ok()).unwrap_or(1),
            "-I" => replaced = rest.next().cloned(),
            "-0" => separator = Some(0),
            _ => {}
        }
    }
    let mut command: Vec<String> = rest.cloned().collect();
    if command.is_empty() {
        command.push("echo".into());
    }
    let (bytes, _) = call.read_operands(&[]).await;
    let words: Vec<String> = match (separator, &replaced) {
        (Some(zero), _) => bytes
            .split(|byte| *byte == zero)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect(),
        (None, Some(_)) => String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect(),
        (None, None) => String::from_utf8_lossy(&bytes)
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    };
    if replaced.is_some() {
        most = 1;
    }
    let mut status = 0;
    let groups: Vec<&[String]> = if words.is_empty() {
        vec![&[]]
    } else {
        words.chunks(most.max(1)).collect()
    };
    for group in groups {
        let argv: Vec<String> = match &replaced {
            Some(mark) => command
                .iter()
                .map(|word| word.replace(mark, group.first().map_or("", String::as_str)))
                .collect(),
            None => command.iter().chain(group).cloned().collect(),
        };
        let ended = run(call, argv).await?;
        if ended != 0 {
            status = 123;
        }
    }
    Ok(status)
}

/// Runs a program of the PATH in a child; its status as a shell has it.
pub async fn run(call: &Call, argv: Vec<String>) -> Outcome {
    let child = spawn(call, argv)?;
    match call.sys.wait(Some(child), false, Patience::Endless).await {
        Ok(Waited::Ended(_, status)) => Ok(status.shell()),
        _ => Ok(127),
    }
}

/// Starts a program of the PATH in a child.
pub fn spawn(call: &Call, argv: Vec<String>) -> Result<u32, Failure> {
    let name = argv.first().cloned().unwrap_or_default();
    let environment = call.sys.environment();
    let missing = Failure::new(127, format!("{name}: No such file or directory"));
    let path = super::system::find(&call.sys, &name).ok_or(missing)?;
    let spawned = call.sys.fork(|sys| {
        Box::pin(async move {
            match load_now(&sys, &path, argv, environment) {
                Ok(task) => task.await,
                Err(Errno::NOENT) => 127,
                Err(_) => 126,
            }
        })
    });
    spawned.map_err(|errno| Failure::on("fork", errno))
}
