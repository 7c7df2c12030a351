//! Programs that look at files without changing them.

use super::system::formatted;
use super::{Call, Failure, Outcome};
use crate::fake::files::Errno;
use crate::fake::files::tree::{Kind, Node};
use crate::fake::kernel::sys::Stat;
use crate::fake::shell::{Marked, matches_pattern};

/// Deepest tree that is walked.
const DEEPEST: u32 = 100;

/// The letter of a kind, as `ls -l` has it.
fn letter(node: &Node) -> char {
    match node.kind {
        Kind::Regular(_) => '-',
        Kind::Directory { .. } => 'd',
        Kind::Symlink(_) | Kind::Descriptor(..) => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::Character(..) => 'c',
        Kind::Block(..) => 'b',
    }
}

fn permissions(node: &Node) -> String {
    let mut text = String::from(letter(node));
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = node.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        let executes = bits & 1 != 0;
        text.push(match (node.mode & special != 0, executes) {
            (true, true) => set,
            (true, false) => set.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Names of users or groups, as a number's word.
async fn word(call: &Call, path: &str, number: u32) -> String {
    let bytes = call.read(path).await.unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
        })
        .unwrap_or_else(|| number.to_string())
}

async fn long_line(call: &Call, name: &str, path: &str, stat: &Stat, numeric: bool) -> String {
    let node = &stat.node;
    let (user, group) = if numeric {
        (node.uid.to_string(), node.gid.to_string())
    } else {
        (
            word(call, "/etc/passwd", node.uid).await,
            word(call, "/etc/group", node.gid).await,
        )
    };
    let size = match node.kind {
        Kind::Character(major, minor) | Kind::Block(major, minor) => format!("{major}, {minor}"),
        _ => stat.size.to_string(),
    };
    let when = formatted("%b %e %H:%M", node.mtime.seconds, 0);
    let mut line = format!(
        "{} {:>4} {user:<8} {group:<8} {size:>9} {when} {name}",
        permissions(node),
        node.links.max(1),
    );
    if let Ok(target) = call.sys.read_link(path) {
        line += &format!(" -> {target}");
    }
    line + "\n"
}

pub async fn ls(call: &Call) -> Outcome {
    let options = call.options("laA1dnhRtrSpFCci")?;
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push(".".into());
    }
    let many = operands.len() > 1;
    let long = options.has('l') || options.has('n');
    let (mut status, mut files, mut directories) = (0, Vec::new(), Vec::new());
    for path in operands {
        let stat = call
            .sys
            .stat(&path, !long && !options.has('d'))
            .or_else(|_| call.sys.stat(&path, false));
        match stat {
            Ok(stat) if stat.node.is_directory() && !options.has('d') => directories.push(path),
            Ok(stat) if long && !options.has('d') && matches!(stat.node.kind, Kind::Symlink(_)) => {
                match call.sys.stat(&path, true) {
                    Ok(target) if target.node.is_directory() && path.ends_with('/') => {
                        directories.push(path);
                    }
                    _ => files.push((path.clone(), path, stat)),
                }
            }
            Ok(stat) => files.push((path.clone(), path, stat)),
            Err(errno) => {
                call.complain(Failure::on(&path, errno).message).await;
                status = 1;
            }
        }
    }
    let mut output = String::new();
    for (name, path, stat) in &files {
        output += &entry(call, name, path, stat, &options).await;
    }
    let mut rest: Vec<String> = directories.into_iter().rev().collect();
    let mut first = files.is_empty();
    while let Some(path) = rest.pop() {
        let mut names = match call.sys.list(&path) {
            Ok(names) => names,
            Err(errno) => {
                call.complain(Failure::on(format!("can't open '{path}'"), errno).message)
                    .await;
                status = 1;
                continue;
            }
        };
        names.retain(|name| !name.starts_with('.') || options.has('a') || options.has('A'));
        if options.has('a') {
            names.splice(0..0, [".".to_owned(), "..".to_owned()]);
        }
        if many || options.has('R') {
            if !first {
                output.push('\n');
            }
            output += &format!("{path}:\n");
        }
        first = false;
        let mut entries = Vec::new();
        for name in names {
            let full = format!("{}/{name}", path.trim_end_matches('/'));
            if let Ok(stat) = call.sys.stat(&full, false) {
                entries.push((name, full, stat));
            }
        }
        if options.has('t') {
            entries.sort_by_key(|(_, _, stat)| std::cmp::Reverse(stat.node.mtime));
        }
        if options.has('S') {
            entries.sort_by_key(|(_, _, stat)| std::cmp::Reverse(stat.size));
        }
        if options.has('r') {
            entries.reverse();
        }
        if long {
            output += "total 0\n";
        }
        for (name, full, stat) in &entries {
            output += &entry(call, name, full, stat, &options).await;
        }
        if options.has('R') && rest.len() < 10_000 {
            let below = entries
                .iter()
                .filter(|(name, _, stat)| stat.node.is_directory() && name != "." && name != "..")
                .map(|(_, full, _)| full.clone());
            let below: Vec<String> = below.collect();
            rest.extend(below.into_iter().rev());
        }
    }
    call.print(output).await?;
    Ok(status)
}

async fn entry(
    call: &Call,
    name: &str,
    path: &str,
    stat: &Stat,
    options: &super::Options,
) -> String {
    let mark = match stat.node.kind {
        Kind::Directory { .. } if options.has('p') || options.has('F') => "/",
        Kind::Symlink(_) if options.has('F') && !options.has('l') => "@",
        Kind::Regular(_) if options.has('F') && stat.node.mode & 0o111 != 0 => "*",
        _ => "",
    };
    let name = format!("{name}{mark}");
    if options.has('l') || options.has('n') {
        long_line(call, &name, path, stat, options.has('n')).await
    } else {
        name + "\n"
    }
}

pub async fn stat(call: &Call) -> Outcome {
    let options = call.options("c:Lft")?;
    let mut status = 0;
    for path in &options.operands {
        let stat = match call.sys.stat(path, options.has('L')) {
            Ok(stat) => stat,
            Err(errno) => {
                call.complain(Failure::on(format!("can't stat '{path}'"), errno).message)
                    .await;
                status = 1;
                continue;
            }
        };
        let node = &stat.node;
        let kind = match node.kind {
            Kind::Regular(_) if stat.size == 0 => "regular empty file",
            Kind::Regular(_) => "regular file",
            Kind::Directory { .. } => "directory",
            Kind::Symlink(_) | Kind::Descriptor(..) => "symbolic link",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::Character(..) => "character special file",
            Kind::Block(..) => "block special file",
        };
        let user = word(call, "/etc/passwd", node.uid).await;
        let group = word(call, "/etc/group", node.gid).await;
        let mode = node.mode & 0o7777;
        let time = formatted("%F %T", node.mtime.seconds, 0);
        let time = format!("{time}.{:09} +0000", node.mtime.nanos);
        let Some(format) = options.value('c') else {
            call.print(format!(
                "  File: {path}\n  Size: {}\t{kind}\nAccess: ({mode:04o}/{})  \
                 Uid: ({:>5}/{user:>8})   Gid: ({:>5}/{group:>8})\nModify: {time}\n",
                stat.size,
                permissions(node),
                node.uid,
                node.gid
            ))
            .await?;
            continue;
        };
        let mut line = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                line.push(c);
                continue;
            }
            line += &match chars.next() {
                Some('a') => format!("{mode:o}"),
                Some('A') => permissions(node),
                Some('u') => node.uid.to_string(),
                Some('g') => node.gid.to_string(),
                Some('U') => user.clone(),
                Some('G') => group.clone(),
                Some('s') => stat.size.to_string(),
                Some('n') => path.clone(),
                Some('F') => kind.to_owned(),
                Some('h') => node.links.to_string(),
                Some('i') => stat.place.inode.to_string(),
                Some('Y') => node.mtime.seconds.to_string(),
                Some('y') => time.clone(),
                Some('f') => format!("{mode:x}"),
                Some('%') => "%".to_owned(),
                other => format!("%{}", other.map_or(String::new(), String::from)),
            };
        }
        call.print(line + "\n").await?;
    }
    Ok(status)
}

pub async fn find(call: &Call) -> Outcome {
    let mut arguments = call.argv[1..].iter().peekable();
    let mut starts = Vec::new();
    while let Some(path) = arguments.next_if(|argument| !argument.starts_with(['-', '!', '('])) {
        starts.push(path.clone());
    }
    if starts.is_empty() {
        starts.push(".".into());
    }
    let (mut name, mut kind, mut deepest, mut least) = (None, None, DEEPEST, 0);
    let mut zero = false;
    while let Some(test) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| Failure::usage(format!("{test} requires an argument")))
        };
        match test.as_str() {
            "-name" => {
                let pattern: Vec<Marked> = value()?.chars().map(|c| (c, false)).collect();
                name = Some(pattern);
            }
            "-type" => kind = value()?.chars().next(),
            "-maxdepth" => deepest = value()?.parse().unwrap_or(DEEPEST),
            "-mindepth" => least = value()?.parse().unwrap_or(0),
            "-print" | "-xdev" => {}
            "-print0" => zero = true,
            other => return Err(Failure::usage(format!("unrecognized: {other}"))),
        }
    }
    let mut status = 0;
    let mut rest: Vec<(String, u32)> = starts.into_iter().rev().map(|path| (path, 0)).collect();
    while let Some((path, depth)) = rest.pop() {
        call.sys.step().await;
        let stat = match call.sys.stat(&path, false) {
            Ok(stat) => stat,
            Err(errno) => {
                call.complain(Failure::on(&path, errno).message).await;
                status = 1;
                continue;
            }
        };
        let base: Vec<char> = path
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or("")
            .chars()
            .collect();
        let wanted = match kind {
            Some('f') => letter(&stat.node) == '-',
            Some(kind) => letter(&stat.node) == kind,
            None => true,
        };
        let named = name
            .as_ref()
            .is_none_or(|pattern| matches_pattern(pattern, &base));
        if wanted && named && depth >= least {
            let end = if zero { '\0' } else { '\n' };
            call.print(format!("{path}{end}")).await?;
        }
        if stat.node.is_directory() && depth < deepest.min(DEEPEST) {
            match call.sys.list(&path) {
                Ok(names) => {
                    let below = names.into_iter().rev().map(|name| {
                        let full = format!("{}/{name}", path.trim_end_matches('/'));
                        (full, depth + 1)
                    });
                    rest.extend(below);
                }
                Err(errno) => {
                    call.complain(Failure::on(&path, errno).message).await;
                    status = 1;
                }
            }
        }
    }
    Ok(status)
}

pub async fn du(call: &Call) -> Outcome {
    let options = call.options("shkma")?;
    let mut operands = options.operands.clone();
    if operands.is_empty() {
        operands.push(".".into());
    }
    for path in operands {
        let mut total = 0;
        let mut rest = vec![path.clone()];
        while let Some(path) = rest.pop() {
            call.sys.step().await;
            let Ok(stat) = call.sys.stat(&path, false) else {
                continue;
            };
            total += stat.size.div_ceil(4096) * 4;
            if stat.node.is_directory() {
                let names = call.sys.list(&path).unwrap_or_default();
                rest.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
        }
        call.print(format!("{total}\t{path}\n")).await?;
    }
    Ok(0)
}

pub async fn readlink(call: &Call) -> Outcome {
    let options = call.options("fn")?;
    let Some(path) = options.operands.first() else {
        return Err(Failure::usage("missing operand"));
    };
    let target = if options.has('f') {
        resolved(call, path)
    } else {
        call.sys.read_link(path)
    };
    match target {
        Ok(target) => {
            let end = if options.has('n') { "" } else { "\n" };
            call.print(format!("{target}{end}")).await?;
            Ok(0)
        }
        // It says nothing.
        Err(_) => Ok(1),
    }
}

fn resolved(call: &Call, path: &str) -> Result<String, Errno> {
    match call.sys.stat(path, true) {
        Ok(stat) => Ok(call.sys.kernel().mounts.path_of(stat.place)),
        Err(Errno::NOENT) => {
            let (parent, name) = match path.trim_end_matches('/').rsplit_once('/') {
                Some(("", name)) => ("/", name),
                Some((parent, name)) => (parent, name),
                None => (".", path),
            };
            let stat = call.sys.stat(parent, true)?;
            let parent = call.sys.kernel().mounts.path_of(stat.place);
            Ok(format!("{}/{name}", parent.trim_end_matches('/')))
        }
        Err(errno) => Err(errno),
    }
}

pub async fn realpath(call: &Call) -> Outcome {
    let mut status = 0;
    for path in &call.argv[1..] {
        match resolved(call, path) {
            Ok(path) => call.print(format!("{path}\n")).await?,
            Err(errno) => {
                call.complain(Failure::on(path, errno).message).await;
                status = 1;
            }
        }
    }
    Ok(status)
}

pub async fn basename(call: &Call) -> Outcome {
    let Some(path) = call.argv.get(1) else {
        return Err(Failure::usage("missing operand"));
    };
    let trimmed = path.trim_end_matches('/');
    let mut name = trimmed.rsplit('/').next().unwrap_or("");
    if trimmed.is_empty() && !path.is_empty() {
        name = "/";
    }
    if let Some(suffix) = call.argv.get(2)
        && name != suffix
    {
        name = name.strip_suffix(suffix.as_str()).unwrap_or(name);
    }
    call.print(format!("{name}\n")).await?;
    Ok(0)
}

pub async fn dirname(call: &Call) -> Outcome {
    let Some(path) = call.argv.get(1) else {
        return Err(Failure::usage("missing operand"));
    };
    let directory = match path.trim_end_matches('/').rsplit_once('/') {
        Some((parent, _)) if parent.trim_end_matches('/').is_empty() => "/",
        Some((parent, _)) => parent.trim_end_matches('/'),
        None if path.starts_with('/') => "/",
        None => ".",
    };
    call.print(format!("{directory}\n")).await?;
    Ok(0)
}
