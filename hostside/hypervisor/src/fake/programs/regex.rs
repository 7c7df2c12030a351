//! `grep` and `sed`, with the part of regular expressions that one-liners use.

use super::{Call, Failure, Outcome};
use crate::fake::shell::{Marked, matches_pattern};

/// A small part of regular expressions: `.`, `x*`, `^`, `$`, `[...]`, `\x`, and
/// with `extended` `x+`, `x?`, `a|b` at the top.
struct Regex {
    branches: Vec<Branch>,
    ignore_case: bool,
}

/// Steps of one search: what would take longer is not found.
const FUEL: u32 = 200_000;
/// Most parts of a pattern; what is longer is cut.
const LONGEST: usize = 500;

/// Anchored at the start; what follows what; anchored at the end.
type Branch = (bool, Vec<(Vec<Marked>, Repeat)>, bool);

#[derive(Clone, Copy, PartialEq)]
enum Repeat {
    Once,
    Any,
    Some,
    Maybe,
}

impl Regex {
    fn new(text: &str, extended: bool, fixed: bool, ignore_case: bool) -> Self {
        let text = if ignore_case {
            text.to_lowercase()
        } else {
            text.to_owned()
        };
        let branches: Vec<String> = if fixed {
            text.lines().map(str::to_owned).collect()
        } else if extended {
            text.split('|').map(str::to_owned).collect()
        } else {
            text.split("\\|").map(str::to_owned).collect()
        };
        let branches = branches
            .iter()
            .map(|branch| Self::branch(branch, extended, fixed))
            .collect();
        Self {
            branches,
            ignore_case,
        }
    }

    fn branch(text: &str, extended: bool, fixed: bool) -> Branch {
        let chars: Vec<char> = text.chars().collect();
        let mut atoms: Vec<(Vec<Marked>, Repeat)> = Vec::new();
        let (mut start, mut end) = (false, false);
        let mut at = 0;
        while at < chars.len() && atoms.len() < LONGEST {
            let c = chars[at];
            at += 1;
            let atom = match c {
                c if fixed => vec![(c, true)],
                '^' if at == 1 => {
                    start = true;
                    continue;
                }
                '$' if at == chars.len() => {
                    end = true;
                    continue;
                }
                '.' => vec![('?', false)],
                '[' => {
                    let from = at - 1;
                    let mut to = at + 1;
                    while to < chars.len() && chars[to] != ']' {
                        to += 1;
                    }
                    at = (to + 1).min(chars.len());
                    chars[from..at].iter().map(|c| (*c, false)).collect()
                }
                '\\' if at < chars.len() => {
                    at += 1;
                    vec![(chars[at - 1], true)]
                }
                '(' | ')' if extended => continue,
                c => vec![(c, true)],
            };
            let repeat = match chars.get(at) {
                Some('*') if !fixed => Repeat::Any,
                Some('+') if extended && !fixed => Repeat::Some,
                Some('?') if extended && !fixed => Repeat::Maybe,
                _ => Repeat::Once,
            };
            at += usize::from(repeat != Repeat::Once);
            atoms.push((atom, repeat));
        }
        (start, atoms, end)
    }

    /// The first place it matches, as longest as it does there.
    fn find(&self, line: &str) -> Option<(usize, usize)> {
        let line: Vec<char> = if self.ignore_case {
            line.to_lowercase().chars().collect()
        } else {
            line.chars().collect()
        };
        let mut fuel = FUEL;
        (0..=line.len()).find_map(|from| {
            self.branches.iter().find_map(|(start, atoms, end)| {
                if *start && from > 0 {
                    return None;
                }
                Self::at(atoms, *end, &line, from, &mut fuel).map(|to| (from, to))
            })
        })
    }

    fn at(
        atoms: &[(Vec<Marked>, Repeat)],
        end: bool,
        line: &[char],
        from: usize,
        fuel: &mut u32,
    ) -> Option<usize> {
        *fuel = fuel.checked_sub(1)?;
        let Some(((atom, repeat), rest)) = atoms.split_first() else {
            return (!end || from == line.len()).then_some(from);
        };
        let fits = |at: usize| line.get(at..=at).is_some_and(|c| matches_pattern(atom, c));
        let (least, most) = match repeat {
            Repeat::Once => (1, 1),
            Repeat::Any => (0, usize::MAX),
            Repeat::Some => (1, usize::MAX),
            Repeat::Maybe => (0, 1),
        };
        let mut count = 0;
        while count < most && fits(from + count) {
            count += 1;
        }
        loop {
            if count < least {
                return None;
            }
            if let Some(to) = Self::at(rest, end, line, from + count, fuel) {
                return Some(to);
            }
            count = count.checked_sub(1)?;
        }
    }
}

pub async fn grep(call: &Call) -> Outcome {
    let mut options = call.options("vicnqlEFoxhHswre:m:")?;
    let name = call.name();
    let pattern = if let Some(pattern) = options.value('e') {
        pattern.to_owned()
    } else if options.operands.is_empty() {
        return Err(Failure::new(2, "usage: grep PATTERN [FILE]..."));
    } else {
        options.operands.remove(0)
    };
    let extended = options.has('E') || name == "egrep";
    let fixed = options.has('F') || name == "fgrep";
    let regex = Regex::new(&pattern, extended, fixed, options.has('i'));
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push("-".into());
    }
    let many = operands.len() > 1 && !options.has('h');
    let (mut found, mut status) = (false, 1);
    for path in &operands {
        let bytes = match call.read(path).await {
            Ok(bytes) => bytes,
            Err(failure) => {
                if !options.has('s') {
                    let why = failure.message.rsplit(": ").next().unwrap_or("");
                    call.complain(format!("{path}: {why}")).await;
                }
                status = 2;
                continue;
            }
        };
        let mut count = 0;
        let mut output = String::new();
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let place = regex.find(line);
            let whole = |(from, to): (usize, usize)| from == 0 && to == line.chars().count();
            let matched = place.is_some_and(|place| !options.has('x') || whole(place));
            if matched == options.has('v') {
                continue;
            }
            count += 1;
            if options.has('q') {
                return Ok(0);
            }
            if many {
                output += &format!("{path}:");
            }
            if options.has('n') {
                output += &format!("{}:", number + 1);
            }
            match place.filter(|_| options.has('o')) {
                Some((from, to)) => output.extend(line.chars().skip(from).take(to - from)),
                None => output += line,
            }
            output.push('\n');
        }
        found |= count > 0;
        if options.has('c') {
            output = if many {
                format!("{path}:{count}\n")
            } else {
                format!("{count}\n")
            };
        } else if options.has('l') {
            output = if count > 0 {
                format!("{path}\n")
            } else {
                String::new()
            };
        }
        call.print(output).await?;
    }
    Ok(if found && status != 2 { 0 } else { status })
}

/// `s/A/B/[g]`, `Nd`, `Np`, `/A/d`, `/A/p`, `Nq`: what one-liners have.
pub async fn sed(call: &Call) -> Outcome {
    let mut options = call.options("ne:Eri")?;
    let mut scripts: Vec<String> = options.values('e').map(str::to_owned).collect();
    if scripts.is_empty() {
        if options.operands.is_empty() {
            return Err(Failure::usage("usage: sed [-nE] SCRIPT [FILE]..."));
        }
        scripts.push(options.operands.remove(0));
    }
    let extended = options.has('E') || options.has('r');
    let (bytes, mut status) = call.read_operands(&options.operands).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let commands: Vec<&str> = scripts
        .iter()
        .flat_map(|script| commands_of(script))
        .collect();
    let mut output = String::new();
    let total = text.lines().count();
    'lines: for (index, line) in text.lines().enumerate() {
        let mut line = line.to_owned();
        let (mut kept, mut quits) = (true, false);
        for command in &commands {
            let (applies, action) = address(command, index + 1, total, &line, extended)?;
            if !applies {
                continue;
            }
            match action.chars().next() {
                Some('d') => {
                    kept = false;
                    break;
                }
                Some('p') => {
                    output += &line;
                    output.push('\n');
                }
                Some('q') => quits = true,
                Some('s') => line = substitute(action, &line, extended)?,
                _ => return Err(Failure::usage(format!("unsupported command {action}"))),
            }
        }
        if kept && !options.has('n') {
            output += &line;
            output.push('\n');
        }
        if quits {
            break 'lines;
        }
    }
    if options.has('i') {
        for path in &options.operands {
            match call
                .sys
                .open(path, crate::fake::kernel::Access::WRITE)
                .await
            {
                Ok(fd) => {
                    let _ = call.sys.write(fd, output.as_bytes()).await;
                    call.sys.close(fd);
                }
                Err(errno) => {
                    call.complain(Failure::on(path, errno).message).await;
                    status = 1;
                }
            }
        }
        return Ok(status);
    }
    call.print(output).await?;
    Ok(status)
}

/// A script's commands: a semicolon inside `s/.../.../` ends none.
fn commands_of(script: &str) -> Vec<&str> {
    let mut commands = Vec::new();
    let mut start = 0;
    // The delimiter of an `s`, and how many of it are still to come.
    let mut inside: Option<(char, u32)> = None;
    let mut chars = script.char_indices();
    while let Some((at, c)) = chars.next() {
        match &mut inside {
            _ if c == '\\' => drop(chars.next()),
            Some((delimiter, left)) if c == *delimiter => {
                *left -= 1;
                if *left == 0 {
                    inside = None;
                }
            }
            Some(_) => {}
            None if c == ';' || c == '\n' => {
                commands.push(script[start..at].trim());
                start = at + 1;
            }
            None if c == 's' => inside = chars.next().map(|(_, delimiter)| (delimiter, 2)),
            None if c == '/' => inside = Some((c, 1)),
            None => {}
        }
    }
    commands.push(script[start..].trim());
    commands.retain(|command| !command.is_empty());
    commands
}

/// Whether a command is for this line, and what is left of it.
fn address<'a>(
    command: &'a str,
    number: usize,
    total: usize,
    line: &str,
    extended: bool,
) -> Result<(bool, &'a str), Failure> {
    let one = |text: &str| {
        if text == "$" {
            total
        } else {
            text.parse().unwrap_or(0)
        }
    };
    if let Some(rest) = command.strip_prefix('/') {
        let (pattern, action) = rest
            .split_once('/')
            .ok_or_else(|| Failure::usage("unterminated address"))?;
        let regex = Regex::new(pattern, extended, false, false);
        return Ok((regex.find(line).is_some(), action));
    }
    let end = command
        .find(|c: char| !(c.is_ascii_digit() || c == ',' || c == '$'))
        .unwrap_or(command.len());
    let (place, action) = command.split_at(end);
    let applies = match place.split_once(',') {
        _ if place.is_empty() => true,
        Some((low, high)) => (one(low)..=one(high)).contains(&number),
        None => one(place) == number,
    };
    Ok((applies, action))
}

fn substitute(command: &str, line: &str, extended: bool) -> Result<String, Failure> {
    let bad = || Failure::usage(format!("bad substitution {command}"));
    let mut chars = command.chars().skip(1);
    let delimiter = chars.next().ok_or_else(bad)?;
    let rest: String = chars.collect();
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut rest = rest.chars();
    while let Some(c) = rest.next() {
        if c == '\\' {
            match rest.next() {
                Some(next) if next == delimiter => part.push(next),
                Some(next) => part.extend(['\\', next]),
                None => part.push('\\'),
            }
        } else if c == delimiter {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    let [pattern, replacement, flags] = parts.as_slice() else {
        return Err(bad());
    };
    let regex = Regex::new(pattern, extended, false, flags.contains('i'));
    let mut output = String::new();
    let mut left: String = line.to_owned();
    while let Some((from, to)) = regex.find(&left) {
        let chars: Vec<char> = left.chars().collect();
        output.extend(&chars[..from]);
        let matched: String = chars[from..to].iter().collect();
        let mut replaced = replacement.chars();
        while let Some(c) = replaced.next() {
            match c {
                '&' => output += &matched,
                '\\' => match replaced.next() {
                    Some('n') => output.push('\n'),
                    Some('t') => output.push('\t'),
                    Some(c) => output.push(c),
                    None => {}
                },
                c => output.push(c),
            }
        }
        let next = if to == from { to + 1 } else { to };
        if to == from {
            output.extend(chars.get(from));
        }
        left = chars.get(next..).unwrap_or(&[]).iter().collect();
        if !flags.contains('g') || (left.is_empty() && to == from) {
            break;
        }
    }
    Ok(output + &left)
}
