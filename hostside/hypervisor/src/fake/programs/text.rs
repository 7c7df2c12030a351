//! Programs that write, and those that pass on what they read.

use std::collections::VecDeque;

use super::{Call, Failure, Outcome};
use crate::fake::FLOOD_PERIOD;
use crate::fake::files::describe;
use crate::fake::flood_byte;
use crate::fake::kernel::Access;
use crate::fake::kernel::sys::CHUNK;

/// What `echo` writes.
pub fn echoed(arguments: &[String]) -> Vec<u8> {
    let (mut newline, mut escapes) = (true, false);
    let mut rest = arguments;
    while let Some((first, after)) = rest.split_first() {
        let flags = first.strip_prefix('-').unwrap_or("");
        if flags.is_empty() || !flags.chars().all(|flag| "neE".contains(flag)) {
            break;
        }
        for flag in flags.chars() {
            match flag {
                'n' => newline = false,
                flag => escapes = flag == 'e',
            }
        }
        rest = after;
    }
    let text = rest.join(" ");
    let (mut bytes, stopped) = if escapes {
        escaped(&text)
    } else {
        (text.into_bytes(), false)
    };
    if newline && !stopped {
        bytes.push(b'\n');
    }
    bytes
}

/// Backslashes undone, and whether there was a `\c`.
fn escaped(text: &str) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let Some((escape, tail)) = rest.split_first() else {
            bytes.push(b'\\');
            break;
        };
        rest = tail;
        match escape {
            b'n' => bytes.push(b'\n'),
            b't' => bytes.push(b'\t'),
            b'r' => bytes.push(b'\r'),
            b'a' => bytes.push(7),
            b'b' => bytes.push(8),
            b'f' => bytes.push(12),
            b'v' => bytes.push(11),
            b'e' => bytes.push(27),
            b'\\' => bytes.push(b'\\'),
            b'"' => bytes.push(b'"'),
            b'c' => return (bytes, true),
            b'x' => rest = digits(rest, 16, 2, &mut bytes),
            b'0' => rest = digits(rest, 8, 3, &mut bytes),
            b'1'..=b'7' => {
                let from = rest.len() + 1;
                let whole = &text.as_bytes()[text.len() - from..];
                rest = digits(whole, 8, 3, &mut bytes);
            }
            other => bytes.extend([b'\\', *other]),
        }
    }
    (bytes, false)
}

fn digits<'a>(text: &'a [u8], radix: u32, most: usize, bytes: &mut Vec<u8>) -> &'a [u8] {
    let mut value: u32 = 0;
    let mut count = 0;
    while count < most
        && let Some(digit) = text
            .get(count)
            .and_then(|byte| char::from(*byte).to_digit(radix))
    {
        value = value * radix + digit;
        count += 1;
    }
    // As C does: what does not fit is cut.
    bytes.push((value & 0xff) as u8);
    &text[count..]
}

/// What `printf` writes, and what it has to complain of.
#[derive(Debug, PartialEq, Eq)]
pub struct Printed {
    /// Written all the same.
    pub bytes: Vec<u8>,
    /// For standard error.
    pub complaint: Option<String>,
}

/// `printf FORMAT ARGUMENTS`.
pub fn printed(arguments: &[String]) -> Printed {
    let mut printed = Printed {
        bytes: Vec::new(),
        complaint: None,
    };
    let arguments = match arguments.first() {
        Some(first) if first == "--" => &arguments[1..],
        _ => arguments,
    };
    let Some((format, rest)) = arguments.split_first() else {
        printed.complaint = Some("usage: printf FORMAT [ARG]...".into());
        return printed;
    };
    let mut rest: VecDeque<&String> = rest.iter().collect();
    loop {
        let before = rest.len();
        if one_format(format, &mut rest, &mut printed) || rest.is_empty() || rest.len() == before {
            return printed;
        }
    }
}

/// One round of a format; whether a `\c` ended everything.
fn one_format(format: &str, rest: &mut VecDeque<&String>, printed: &mut Printed) -> bool {
    let mut literal = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\\' {
            literal.push(c);
            literal.extend(chars.next());
            continue;
        }
        if c != '%' {
            literal.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            literal.push('%');
            continue;
        }
        let (bytes, stopped) = escaped(&std::mem::take(&mut literal));
        printed.bytes.extend(bytes);
        if stopped {
            return true;
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "-+ 0#".contains(*c)) {
            flags.push(flag);
        }
        let mut number = || {
            if chars.next_if_eq(&'*').is_some() {
                return rest.pop_front().and_then(|text| text.parse().ok());
            }
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse::<usize>().ok()
        };
        let width = number().unwrap_or(0).min(1 << 16);
        let precision = if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            Some(digits.parse::<usize>().unwrap_or(0).min(1 << 16))
        } else {
            None
        };
        while chars.next_if(|c| "lhjzt".contains(*c)).is_some() {}
        let conversion = chars.next().unwrap_or('s');
        let argument = rest.pop_front();
        let mut body = convert(conversion, argument, precision, &flags, printed);
        if let Some(stop) = body.1 {
            body.0.truncate(stop);
        }
        let left = flags.contains('-');
        let zero = flags.contains('0') && !left && "dioxXuf".contains(conversion);
        let missing = width.saturating_sub(body.0.len());
        if zero {
            let sign = usize::from(body.0.first().is_some_and(|byte| b"+-".contains(byte)));
            body.0
                .splice(sign..sign, std::iter::repeat_n(b'0', missing));
        } else if left {
            body.0.extend(std::iter::repeat_n(b' ', missing));
        } else {
            printed.bytes.extend(std::iter::repeat_n(b' ', missing));
        }
        printed.bytes.extend(body.0);
        if body.1.is_some() {
            return true;
        }
    }
    let (bytes, stopped) = escaped(&literal);
    printed.bytes.extend(bytes);
    stopped
}

fn convert(
    conversion: char,
    argument: Option<&String>,
    precision: Option<usize>,
    flags: &str,
    printed: &mut Printed,
) -> (Vec<u8>, Option<usize>) {
    let text = argument.map_or("", String::as_str);
    let mut whole = || {
        if let Some(c) = text.strip_prefix(['\'', '"']) {
            return c.chars().next().map_or(0, |c| i64::from(u32::from(c)));
        }
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        let parsed = if let Some(hex) = digits.strip_prefix("0x") {
            i64::from_str_radix(hex, 16)
        } else if digits.len() > 1 && digits.starts_with('0') {
            i64::from_str_radix(digits, 8)
        } else if digits.is_empty() && argument.is_none() {
            Ok(0)
        } else {
            digits.parse()
        };
        parsed.map_or_else(
            |_| {
                printed.complaint = Some(format!("invalid number '{text}'"));
                0
            },
            |value| sign * value,
        )
    };
    let mut stop = None;
    let bytes = match conversion {
        's' => {
            let cut = precision.unwrap_or(usize::MAX);
            text.chars().take(cut).collect::<String>().into_bytes()
        }
        'b' => {
            let (bytes, stopped) = escaped(text);
            stop = stopped.then_some(bytes.len());
            bytes
        }
        'c' => text.chars().take(1).collect::<String>().into_bytes(),
        'd' | 'i' => {
            let value = whole();
            let plus = if flags.contains('+') && value >= 0 {
                "+"
            } else {
                ""
            };
            format!("{plus}{value}").into_bytes()
        }
        'u' => format!("{}", whole().cast_unsigned()).into_bytes(),
        'o' => format!("{:o}", whole()).into_bytes(),
        'x' => format!("{:x}", whole()).into_bytes(),
        'X' => format!("{:X}", whole()).into_bytes(),
        'f' | 'g' | 'e' => {
            let value: f64 = text.parse().unwrap_or(0.0);
            format!("{value:.*}", precision.unwrap_or(6)).into_bytes()
        }
        other => {
            printed.complaint = Some(format!("%{other}: invalid format"));
            Vec::new()
        }
    };
    (bytes, stop)
}

pub async fn echo(call: &Call) -> Outcome {
    call.print(echoed(&call.argv[1..])).await?;
    Ok(0)
}

pub async fn printf(call: &Call) -> Outcome {
    let printed = printed(&call.argv[1..]);
    call.print(printed.bytes).await?;
    match printed.complaint {
        Some(what) => Err(Failure::new(1, what)),
        None => Ok(0),
    }
}

pub async fn cat(call: &Call) -> Outcome {
    let options = call.options("nAestuvb")?;
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push("-".into());
    }
    let mut status = 0;
    let mut number = 0;
    for path in &operands {
        let copied = if options.has('n') {
            match call.read(path).await {
                Ok(bytes) => {
                    let mut lines = String::new();
                    for line in String::from_utf8_lossy(&bytes).lines() {
                        number += 1;
                        lines += &format!("{number:>6}\t{line}\n");
                    }
                    call.print(lines).await
                }
                Err(failure) => Err(failure),
            }
        } else {
            match call.open(path).await {
                Ok(fd) => {
                    let copied = call.copy(fd, path).await;
                    if fd != 0 {
                        call.sys.close(fd);
                    }
                    copied
                }
                Err(failure) => Err(failure),
            }
        };
        if let Err(failure) = copied {
            call.complain(failure.message).await;
            status = 1;
        }
    }
    Ok(status)
}

/// `-N` as `-n N`.
fn with_old_counts(call: &Call) -> Call {
    let mut call = call.clone();
    for argument in &mut call.argv[1..] {
        if let Some(count) = argument.strip_prefix('-')
            && !count.is_empty()
            && count.bytes().all(|byte| byte.is_ascii_digit())
        {
            *argument = format!("-n{count}");
        }
    }
    call
}

/// A count, with the suffixes of busybox.
pub fn count(text: &str) -> Result<u64, Failure> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "c" => 1,
        "w" => 2,
        "b" => 512,
        "k" | "K" => 1 << 10,
        "kB" | "KB" => 1000,
        "m" | "M" => 1 << 20,
        "MB" => 1_000_000,
        "g" | "G" => 1 << 30,
        "GB" => 1_000_000_000,
        _ => return Err(Failure::new(1, format!("invalid number '{text}'"))),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| Failure::new(1, format!("invalid number '{text}'")))
}

pub async fn head(call: &Call) -> Outcome {
    let call = &with_old_counts(call);
    let options = call.options("n:c:qv")?;
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push("-".into());
    }
    let (lines, bytes) = match (options.value('c'), options.value('n')) {
        (Some(text), _) => (None, count(text)?),
        (None, text) => (Some(count(text.unwrap_or("10"))?), u64::MAX),
    };
    let mut status = 0;
    for (index, path) in operands.iter().enumerate() {
        let fd = match call.open(path).await {
            Ok(fd) => fd,
            Err(failure) => {
                call.complain(failure.message).await;
                status = 1;
                continue;
            }
        };
        if operands.len() > 1 && !options.has('q') {
            let gap = if index > 0 { "\n" } else { "" };
            call.print(format!("{gap}==> {path} <==\n")).await?;
        }
        let (mut lines_left, mut bytes_left) = (lines, bytes);
        while bytes_left > 0 && lines_left != Some(0) {
            let most = usize::try_from(bytes_left).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = match call.sys.read(fd, most).await {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => chunk,
                Err(errno) => {
                    call.complain(format!("{path}: {}", describe(errno))).await;
                    status = 1;
                    break;
                }
            };
            if let Some(left) = &mut lines_left {
                let mut end = chunk.len();
                for (at, byte) in chunk.iter().enumerate() {
                    if *byte == b'\n' {
                        *left -= 1;
                        if *left == 0 {
                            end = at + 1;
                            break;
                        }
                    }
                }
                chunk.truncate(end);
            }
            bytes_left -= chunk.len() as u64;
            call.print(chunk).await?;
        }
        if fd != 0 {
            call.sys.close(fd);
        }
    }
    Ok(status)
}

pub async fn tail(call: &Call) -> Outcome {
    let call = &with_old_counts(call);
    let options = call.options("n:c:fFq")?;
    let text = options.value('c').or(options.value('n')).unwrap_or("10");
    let (from_start, number) = match text.strip_prefix('+') {
        Some(number) => (true, count(number)?),
        None => (false, count(text.trim_start_matches('-'))?),
    };
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let path = options.operands.first().map_or("-", String::as_str);
    let fd = match call.open(path).await {
        Ok(fd) => fd,
        Err(failure) => return Err(failure),
    };
    let all = call
        .sys
        .read_all(fd)
        .await
        .map_err(|errno| Failure::on(path, errno))?;
    let start = if options.has('c') {
        if from_start {
            number.saturating_sub(1).min(all.len())
        } else {
            all.len().saturating_sub(number)
        }
    } else {
        let ends: Vec<usize> = all
            .iter()
            .enumerate()
            .filter(|(at, byte)| **byte == b'\n' && at + 1 < all.len())
            .map(|(at, _)| at + 1)
            .collect();
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let first = if from_start {
            number.saturating_sub(1)
        } else {
            starts.len().saturating_sub(number)
        };
        starts.get(first).copied().unwrap_or(all.len())
    };
    call.print(&all[start..]).await?;
    if options.has('f') || options.has('F') {
        loop {
            // As busybox: a file cannot be waited for without inotify.
            let _ = call
                .sys
                .sleep(Some(std::time::Duration::from_millis(200)))
                .await;
            let more = call
                .sys
                .read_all(fd)
                .await
                .map_err(|errno| Failure::on(path, errno))?;
            call.print(more).await?;
        }
    }
    Ok(0)
}

pub async fn seq(call: &Call) -> Outcome {
    let mut numbers = Vec::new();
    let mut separator = "\n".to_owned();
    let mut width = 0;
    let mut arguments = call.argv[1..].iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-s" => separator = arguments.next().cloned().unwrap_or_default(),
            "-w" => width = 1,
            text => numbers.push(
                text.parse::<f64>()
                    .map_err(|_| Failure::new(1, format!("invalid number '{text}'")))?,
            ),
        }
    }
    let (first, step, last) = match numbers[..] {
        [last] => (1.0, 1.0, last),
        [first, last] => (first, 1.0, last),
        [first, step, last] if step != 0.0 => (first, step, last),
        _ => return Err(Failure::usage("usage: seq [FIRST [INC]] LAST")),
    };
    if width > 0 {
        width = format!("{last}").len().max(format!("{first}").len());
    }
    let mut text = String::new();
    let mut index = 0.0;
    loop {
        let value = first + step * index;
        if (step > 0.0 && value > last) || (step < 0.0 && value < last) {
            break;
        }
        if index > 0.0 {
            text += &separator;
        }
        text += &format!("{value:0width$}");
        index += 1.0;
        if text.len() > CHUNK {
            call.print(std::mem::take(&mut text)).await?;
        }
    }
    if index > 0.0 {
        text.push('\n');
    }
    call.print(text).await?;
    Ok(0)
}

pub async fn yes(call: &Call) -> Outcome {
    let mut line = call.argv[1..].join(" ");
    if line.is_empty() {
        line = "y".into();
    }
    let chunk = format!("{line}\n").repeat(1 + 4096 / (line.len() + 1));
    loop {
        call.print(&chunk).await?;
    }
}

pub async fn tee(call: &Call) -> Outcome {
    let options = call.options("ai")?;
    let access = if options.has('a') {
        Access::APPEND
    } else {
        Access::WRITE
    };
    let (mut outputs, mut status) = (vec![1], 0);
    for path in &options.operands {
        match call.sys.open(path, access).await {
            Ok(fd) => outputs.push(fd),
            Err(errno) => {
                call.complain(format!("{path}: {}", describe(errno))).await;
                status = 1;
            }
        }
    }
    loop {
        let bytes = call.sys.read(0, CHUNK).await.unwrap_or_default();
        if bytes.is_empty() {
            return Ok(status);
        }
        for fd in &outputs {
            if call.sys.write(*fd, &bytes).await.is_err() {
                status = 1;
            }
        }
    }
}

/// `flood [N]`: N bytes, byte `i` being [`flood_byte`]`(i)`; without N for ever.
pub async fn flood(call: &Call) -> Outcome {
    let end = match call.argv.get(1) {
        Some(text) => count(text)?,
        None => u64::MAX,
    };
    let period: Vec<u8> = (0..FLOOD_PERIOD as u64).map(flood_byte).collect();
    let chunk = period.repeat(CHUNK / FLOOD_PERIOD);
    let mut left = end;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        call.print(&chunk[..length]).await?;
        left -= length as u64;
    }
    Ok(0)
}
