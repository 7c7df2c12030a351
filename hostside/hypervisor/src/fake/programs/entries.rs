//! Programs that make, change and remove files.

use super::{Call, Failure, Outcome};
use crate::fake::files::tree::{Kind, Node, Stamp};
use crate::fake::files::{Errno, describe};
use crate::fake::kernel::Access;

/// Deepest tree that is copied or removed.
const DEEPEST: u32 = 100;

fn failure(what: impl std::fmt::Display, errno: Errno) -> String {
    format!("{what}: {}", describe(errno))
}

/// A path with a name appended.
fn below(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or("")
}

pub async fn mkdir(call: &Call) -> Outcome {
    let options = call.options("pm:v")?;
    let mode = match options.value('m') {
        Some(text) => Some(
            u32::from_str_radix(text, 8)
                .map_err(|_| Failure::new(1, format!("invalid mode '{text}'")))?,
        ),
        None => None,
    };
    let mut status = 0;
    for path in &options.operands {
        let mut made = Ok(());
        if options.has('p') {
            let mut so_far = String::new();
            for part in path.split_inclusive('/') {
                so_far += part;
                let is_directory = |path: &str| {
                    call.sys
                        .stat(path, true)
                        .is_ok_and(|stat| stat.node.is_directory())
                };
                if so_far.chars().all(|c| c == '/') || is_directory(&so_far) {
                    continue;
                }
                made = make_directory(call, so_far.trim_end_matches('/'));
                if made.is_err() {
                    break;
                }
            }
        } else {
            made = make_directory(call, path.trim_end_matches('/'));
        }
        match (made, mode) {
            (Ok(()), Some(mode)) => {
                let _ = call.sys.change(path, true, |node| node.mode = mode);
            }
            (Ok(()), None) => {}
            (Err(errno), _) => {
                call.complain(failure(format!("can't create directory '{path}'"), errno))
                    .await;
                status = 1;
            }
        }
    }
    Ok(status)
}

fn make_directory(call: &Call, path: &str) -> Result<(), Errno> {
    call.sys
        .make(path, Node::directory(0o777, Stamp::default()))
}

pub async fn rmdir(call: &Call) -> Outcome {
    let options = call.options("p")?;
    let mut status = 0;
    for path in &options.operands {
        if let Err(errno) = call.sys.rmdir(path) {
            call.complain(failure(format!("'{path}'"), errno)).await;
            status = 1;
        }
    }
    Ok(status)
}

pub async fn rm(call: &Call) -> Outcome {
    let options = call.options("rRfiv")?;
    let recursive = options.has('r') || options.has('R');
    let force = options.has('f');
    if options.operands.is_empty() && !force {
        return Err(Failure::usage("missing operand"));
    }
    let mut status = 0;
    for path in &options.operands {
        if matches!(base(path), "." | "..") {
            call.complain(format!(
                "refusing to remove '.' or '..' directory: skipping '{path}'"
            ))
            .await;
            status = 1;
            continue;
        }
        match call.sys.stat(path, false) {
            Err(Errno::NOENT | Errno::NOTDIR) if force => continue,
            Ok(stat) if stat.node.is_directory() && !recursive => {
                call.complain(format!("'{path}' is a directory")).await;
                status = 1;
                continue;
            }
            _ => {}
        }
        if let Err((path, errno)) = remove(call, path, 0).await {
            call.complain(failure(format!("can't remove '{path}'"), errno))
                .await;
            status = 1;
        }
    }
    Ok(status)
}

type Removal<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), (String, Errno)>> + Send + 'a>>;

fn remove<'a>(call: &'a Call, path: &'a str, depth: u32) -> Removal<'a> {
    Box::pin(async move {
        call.sys.step().await;
        let on = |errno| (path.to_owned(), errno);
        let stat = call.sys.stat(path, false).map_err(on)?;
        if !stat.node.is_directory() {
            return call.sys.unlink(path).map_err(on);
        }
        if depth > DEEPEST {
            return Err(on(Errno::LOOP));
        }
        for name in call.sys.list(path).map_err(on)? {
            remove(call, &below(path, &name), depth + 1).await?;
        }
        call.sys.rmdir(path).map_err(on)
    })
}

pub async fn touch(call: &Call) -> Outcome {
    let options = call.options("camd:t:r:h")?;
    let now = call.sys.kernel().stamp();
    let stamp = match options.value('d') {
        Some(text) => Stamp {
            seconds: text
                .strip_prefix('@')
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Failure::new(1, format!("invalid date '{text}'")))?,
            nanos: 0,
        },
        None => now,
    };
    let mut status = 0;
    for path in &options.operands {
        let changed = match call.sys.change(path, true, |node| node.mtime = stamp) {
            Err(Errno::NOENT) if !options.has('c') => {
                let access = Access {
                    truncate: false,
                    ..Access::WRITE
                };
                match call.sys.open(path, access).await {
                    Ok(fd) => {
                        call.sys.close(fd);
                        call.sys.change(path, true, |node| node.mtime = stamp)
                    }
                    Err(errno) => Err(errno),
                }
            }
            Err(Errno::NOENT) => Ok(()),
            other => other,
        };
        if let Err(errno) = changed {
            call.complain(failure(path, errno)).await;
            status = 1;
        }
    }
    Ok(status)
}

/// Sources, and the directory or name they go to.
fn targets(call: &Call, operands: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let [sources @ .., target] = operands else {
        return Err(Failure::usage("missing operand"));
    };
    if sources.is_empty() {
        return Err(Failure::usage("missing operand"));
    }
    let into = call
        .sys
        .stat(target, true)
        .is_ok_and(|stat| stat.node.is_directory());
    if sources.len() > 1 && !into {
        return Err(Failure::on(format!("target '{target}'"), Errno::NOTDIR));
    }
    Ok(sources
        .iter()
        .map(|source| {
            let to = if into {
                below(target, base(source))
            } else {
                target.clone()
            };
            (source.clone(), to)
        })
        .collect())
}

#[derive(Debug, Clone, Copy)]
struct Copying {
    recursive: bool,
    keeps: bool,
    links: bool,
}

type Copied<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

fn copy<'a>(call: &'a Call, from: &'a str, to: &'a str, how: Copying, depth: u32) -> Copied<'a> {
    Box::pin(async move {
        call.sys.step().await;
        let stat = call
            .sys
            .stat(from, !how.links)
            .map_err(|errno| failure(format!("can't stat '{from}'"), errno))?;
        let create = |errno| failure(format!("can't create '{to}'"), errno);
        match &stat.node.kind {
            Kind::Directory { .. } => {
                if !how.recursive {
                    return Err(format!("omitting directory '{from}'"));
                }
                if depth > DEEPEST {
                    return Err(failure(from, Errno::LOOP));
                }
                match call
                    .sys
                    .make(to, Node::directory(stat.node.mode, Stamp::default()))
                {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(create(errno)),
                }
                for name in call.sys.list(from).map_err(|errno| failure(from, errno))? {
                    copy(call, &below(from, &name), &below(to, &name), how, depth + 1).await?;
                }
            }
            Kind::Regular(_) => {
                let access = Access {
                    create: Some(stat.node.mode & 0o777),
                    ..Access::WRITE
                };
                let input = call
                    .sys
                    .open(from, Access::READ)
                    .await
                    .map_err(|errno| failure(format!("can't open '{from}'"), errno))?;
                let output = call.sys.open(to, access).await;
                let output = match output {
                    Ok(output) => output,
                    Err(errno) => {
                        call.sys.close(input);
                        return Err(create(errno));
                    }
                };
                let copied = loop {
                    match call.sys.read(input, super::CHUNK).await {
                        Ok(bytes) if bytes.is_empty() => break Ok(()),
                        Ok(bytes) => {
                            if let Err(errno) = call.sys.write(output, &bytes).await {
                                break Err(failure(format!("error writing to '{to}'"), errno));
                            }
                        }
                        Err(errno) => break Err(failure(from, errno)),
                    }
                };
                call.sys.close(input);
                call.sys.close(output);
                copied?;
            }
            Kind::Symlink(_) | Kind::Fifo | Kind::Character(..) | Kind::Block(..) => {
                let node = Node::new(stat.node.kind.clone(), stat.node.mode, Stamp::default());
                call.sys.make(to, node).map_err(create)?;
            }
            Kind::Socket | Kind::Descriptor(..) => {}
        }
        if how.keeps {
            let node = stat.node;
            let _ = call.sys.change(to, false, |copy| {
                copy.mode = node.mode;
                copy.uid = node.uid;
                copy.gid = node.gid;
                copy.mtime = node.mtime;
            });
        }
        Ok(())
    })
}

pub async fn cp(call: &Call) -> Outcome {
    let options = call.options("rRapfidLPHT")?;
    let how = Copying {
        recursive: options.has('r') || options.has('R') || options.has('a'),
        keeps: options.has('p') || options.has('a'),
        links: options.has('a') || options.has('d') || options.has('P'),
    };
    let mut status = 0;
    for (from, to) in targets(call, &options.operands)? {
        if let Err(what) = copy(call, &from, &to, how, 0).await {
            call.complain(what).await;
            status = 1;
        }
    }
    Ok(status)
}

pub async fn mv(call: &Call) -> Outcome {
    let options = call.options("fin")?;
    let mut status = 0;
    for (from, to) in targets(call, &options.operands)? {
        let moved = match call.sys.rename(&from, &to) {
            Err(Errno::XDEV) => {
                let how = Copying {
                    recursive: true,
                    keeps: true,
                    links: true,
                };
                match copy(call, &from, &to, how, 0).await {
                    Ok(()) => remove(call, &from, 0)
                        .await
                        .map_err(|(path, errno)| failure(path, errno)),
                    Err(what) => Err(what),
                }
            }
            Err(errno) => Err(failure(format!("can't rename '{from}'"), errno)),
            Ok(()) => Ok(()),
        };
        if let Err(what) = moved {
            call.complain(what).await;
            status = 1;
        }
    }
    Ok(status)
}

pub async fn ln(call: &Call) -> Outcome {
    let options = call.options("sfnT")?;
    let mut operands = options.operands.clone();
    if let [one] = operands.as_slice() {
        let name = base(one).to_owned();
        operands.push(name);
    }
    let mut status = 0;
    for (from, to) in targets(call, &operands)? {
        if options.has('f') {
            let _ = call.sys.unlink(&to);
        }
        let linked = if options.has('s') {
            let kind = Kind::Symlink(from.clone().into_bytes());
            call.sys.make(&to, Node::new(kind, 0o777, Stamp::default()))
        } else {
            call.sys.link(&from, &to)
        };
        if let Err(errno) = linked {
            call.complain(failure(&to, errno)).await;
            status = 1;
        }
    }
    Ok(status)
}

/// A mode, octal or `[ugoa][+-=][rwxXst],...`, from what it was.
fn mode(text: &str, old: u32, directory: bool) -> Option<u32> {
    if let Ok(mode) = u32::from_str_radix(text, 8) {
        return Some(mode & 0o7777);
    }
    let mut mode = old;
    for clause in text.split(',') {
        let at = clause.find(['+', '-', '='])?;
        let (who, rest) = clause.split_at(at);
        let who = if who.is_empty() { "a" } else { who };
        let mut chars = rest.chars();
        let operator = chars.next()?;
        let mut bits = 0;
        let mut affected = 0;
        for letter in who.chars() {
            affected |= match letter {
                'u' => 0o4700,
                'g' => 0o2070,
                'o' => 0o1007,
                'a' => 0o7777,
                _ => return None,
            };
        }
        for letter in chars {
            bits |= match letter {
                'r' => 0o444,
                'w' => 0o222,
                'x' => 0o111,
                'X' if directory || old & 0o111 != 0 => 0o111,
                'X' => 0,
                's' => 0o6000,
                't' => 0o1000,
                _ => return None,
            };
        }
        bits &= affected;
        match operator {
            '+' => mode |= bits,
            '-' => mode &= !bits,
            _ => mode = (mode & !(affected & 0o777)) | bits,
        }
    }
    Some(mode)
}

pub async fn chmod(call: &Call) -> Outcome {
    let mut argv = call.argv.clone();
    let recursive = argv.get(1).is_some_and(|flag| flag == "-R");
    if recursive {
        argv.remove(1);
    }
    let [_, wanted, paths @ ..] = argv.as_slice() else {
        return Err(Failure::usage("missing operand"));
    };
    let mut status = 0;
    for path in walked(call, paths, recursive) {
        let mut valid = true;
        let changed = call.sys.change(&path, true, |node| {
            match mode(wanted, node.mode, node.is_directory()) {
                Some(mode) => node.mode = mode,
                None => valid = false,
            }
        });
        if !valid {
            return Err(Failure::new(1, format!("invalid mode '{wanted}'")));
        }
        if let Err(errno) = changed {
            call.complain(failure(&path, errno)).await;
            status = 1;
        }
    }
    Ok(status)
}

/// The paths, and what is below them.
fn walked(call: &Call, paths: &[String], recursive: bool) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest: Vec<String> = paths.iter().rev().cloned().collect();
    while let Some(path) = rest.pop() {
        let directory = recursive
            && call
                .sys
                .stat(&path, false)
                .is_ok_and(|stat| stat.node.is_directory());
        if directory {
            let names = call.sys.list(&path).unwrap_or_default();
            rest.extend(names.iter().map(|name| below(&path, name)));
        }
        all.push(path);
    }
    all
}

pub async fn chown(call: &Call) -> Outcome {
    let options = call.options("Rhf")?;
    let [owner, paths @ ..] = options.operands.as_slice() else {
        return Err(Failure::usage("missing operand"));
    };
    let (user, group) = if call.name() == "chgrp" {
        ("", Some(owner.as_str()))
    } else {
        match owner.split_once([':', '.']) {
            Some((user, group)) => (user, Some(group)),
            None => (owner.as_str(), None),
        }
    };
    let uid = number(call, "/etc/passwd", "user", user).await?;
    let gid = number(call, "/etc/group", "group", group.unwrap_or("")).await?;
    if call.sys.own(|process| process.who.uid) != 0 {
        return Err(Failure::on(
            paths.first().map_or("", String::as_str),
            Errno::PERM,
        ));
    }
    let mut status = 0;
    for path in walked(call, paths, options.has('R')) {
        let changed = call.sys.change(&path, !options.has('h'), |node| {
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
        });
        if let Err(errno) = changed {
            call.complain(failure(&path, errno)).await;
            status = 1;
        }
    }
    Ok(status)
}

async fn number(call: &Call, path: &str, kind: &str, text: &str) -> Result<Option<u32>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = text.parse() {
        return Ok(Some(number));
    }
    let bytes = call.read(path).await.unwrap_or_default();
    let found = String::from_utf8_lossy(&bytes).lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok())?
    });
    match found {
        Some(number) => Ok(Some(number)),
        None => Err(Failure::new(1, format!("unknown {kind} {text}"))),
    }
}

pub async fn mknod(call: &Call) -> Outcome {
    let options = call.options("m:")?;
    let device = |at: usize| options.operands.get(at).and_then(|text| text.parse().ok());
    let (path, kind) = match options.operands.as_slice() {
        [path, kind, ..] if kind == "p" => (path, Kind::Fifo),
        [path, kind, ..] => match (kind.as_str(), device(2), device(3)) {
            ("c" | "u", Some(major), Some(minor)) => (path, Kind::Character(major, minor)),
            ("b", Some(major), Some(minor)) => (path, Kind::Block(major, minor)),
            _ => return Err(Failure::usage("invalid device type or number")),
        },
        _ => return Err(Failure::usage("missing operand")),
    };
    call.sys
        .make(path, Node::new(kind, 0o666, Stamp::default()))
        .map_err(|errno| Failure::on(path, errno))?;
    Ok(0)
}

pub async fn mkfifo(call: &Call) -> Outcome {
    let options = call.options("m:")?;
    for path in &options.operands {
        call.sys
            .make(path, Node::new(Kind::Fifo, 0o666, Stamp::default()))
            .map_err(|errno| Failure::on(path, errno))?;
    }
    Ok(0)
}

pub async fn truncate(call: &Call) -> Outcome {
    let options = call.options("cs:")?;
    let size = super::text::count(options.value('s').unwrap_or("0"))?;
    for path in &options.operands {
        let access = Access {
            truncate: false,
            ..Access::WRITE
        };
        let fd = call
            .sys
            .open(path, access)
            .await
            .map_err(|errno| Failure::on(path, errno))?;
        call.sys.close(fd);
        call.sys
            .truncate(path, size)
            .map_err(|errno| Failure::on(path, errno))?;
    }
    Ok(0)
}

pub async fn mktemp(call: &Call) -> Outcome {
    let options = call.options("dp:")?;
    let template = options
        .operands
        .first()
        .map_or("/tmp/tmp.XXXXXX", String::as_str);
    let random = call.sys.kernel().random();
    let path = template.replace("XXXXXX", &format!("{:06x}", random & 0xff_ffff));
    let made = if options.has('d') {
        call.sys
            .make(&path, Node::directory(0o700, Stamp::default()))
    } else {
        call.sys
            .make(&path, Node::file([], 0o600, Stamp::default()))
    };
    made.map_err(|errno| Failure::on(&path, errno))?;
    call.print(format!("{path}\n")).await?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::mode;

    #[test]
    fn modes_are_read_as_chmod_reads_them() {
        for (text, old, expected) in [
            ("755", 0, Some(0o755)),
            ("4711", 0, Some(0o4711)),
            ("+x", 0o644, Some(0o755)),
            ("u+x", 0o644, Some(0o744)),
            ("go-r", 0o644, Some(0o600)),
            ("a=rw,u+s", 0o777, Some(0o4666)),
            ("u=rwx,g=rx,o=", 0o666, Some(0o750)),
            ("+t", 0o777, Some(0o1777)),
            ("bad", 0, None),
        ] {
            assert_eq!(mode(text, old, false), expected, "{text}");
        }
    }
}
