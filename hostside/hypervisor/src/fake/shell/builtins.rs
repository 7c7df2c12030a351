//! What a shell does itself (XCU 2.14, and what cannot be a program).

use super::{Flow, Leave, Shell};
use crate::fake::files::describe;
use crate::fake::kernel::{Disposition, signal};
use crate::fake::programs::{condition, process, text};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    Nothing,
    False,
    Break,
    Cd,
    Command,
    Continue,
    Echo,
    Eval,
    Exec,
    Exit,
    Export,
    Jobs,
    Foreground,
    Kill,
    Local,
    Printf,
    Pwd,
    Read,
    ReadOnly,
    Return,
    Set,
    Shift,
    Source,
    Test,
    Trap,
    Type,
    Ulimit,
    Umask,
    Unset,
    Wait,
}

pub(super) fn find(name: &str) -> Option<Builtin> {
    Some(match name {
        ":" | "true" | "hash" | "alias" | "unalias" | "times" => Builtin::Nothing,
        "false" => Builtin::False,
        "break" => Builtin::Break,
        "cd" | "chdir" => Builtin::Cd,
        "command" => Builtin::Command,
        "continue" => Builtin::Continue,
        "echo" => Builtin::Echo,
        "eval" => Builtin::Eval,
        "exec" => Builtin::Exec,
        "exit" => Builtin::Exit,
        "export" => Builtin::Export,
        "jobs" => Builtin::Jobs,
        "fg" | "bg" => Builtin::Foreground,
        "kill" => Builtin::Kill,
        "local" => Builtin::Local,
        "printf" => Builtin::Printf,
        "pwd" => Builtin::Pwd,
        "read" => Builtin::Read,
        "readonly" => Builtin::ReadOnly,
        "return" => Builtin::Return,
        "set" => Builtin::Set,
        "shift" => Builtin::Shift,
        "." | "source" => Builtin::Source,
        "test" | "[" => Builtin::Test,
        "trap" => Builtin::Trap,
        "type" => Builtin::Type,
        "ulimit" => Builtin::Ulimit,
        "umask" => Builtin::Umask,
        "unset" => Builtin::Unset,
        "wait" => Builtin::Wait,
        _ => return None,
    })
}

/// Whether assignments before it stay (XCU 2.14).
pub(super) fn is_special(name: &str) -> bool {
    [
        ":", ".", "break", "continue", "eval", "exec", "exit", "export", "readonly", "return",
        "set", "shift", "times", "trap", "unset",
    ]
    .contains(&name)
}

impl Shell {
    pub(super) async fn builtin(&mut self, builtin: Builtin, fields: Vec<String>) -> Flow {
        let name = &fields[0];
        let arguments = &fields[1..];
        self.status = match builtin {
            Builtin::Nothing => 0,
            Builtin::False => 1,
            Builtin::Break | Builtin::Continue => {
                let levels = arguments.first().and_then(|text| text.parse().ok());
                let levels: u32 = levels.unwrap_or(1);
                self.status = 0;
                if self.loops == 0 || levels == 0 {
                    return Ok(());
                }
                let levels = levels.min(self.loops);
                return Err(if builtin == Builtin::Break {
                    Leave::Break(levels)
                } else {
                    Leave::Continue(levels)
                });
            }
            Builtin::Cd => self.cd(arguments).await,
            Builtin::Command => return self.command_builtin(arguments).await,
            Builtin::Echo => {
                let line = text::echoed(arguments);
                self.say(&line).await
            }
            Builtin::Eval => {
                self.status = 0;
                return self.run_text(&arguments.join(" ")).await;
            }
            Builtin::Exec => {
                if arguments.is_empty() {
                    self.status = 0;
                    return Ok(());
                }
                let environment = self.environment();
                self.status = self.execute(arguments.to_vec(), environment).await;
                self.traps.clear();
                return Err(Leave::Exit);
            }
            Builtin::Exit | Builtin::Return => {
                if let Some(text) = arguments.first() {
                    match text.parse::<i64>() {
                        // The low byte, as exit(2) keeps it.
                        Ok(code) => self.status = (code & 0xff) as u8,
                        Err(_) => {
                            self.complain(&format!("{name}: Illegal number: {text}"))
                                .await;
                            self.status = 2;
                        }
                    }
                }
                return Err(if builtin == Builtin::Exit {
                    Leave::Exit
                } else {
                    Leave::Return
                });
            }
            Builtin::Export | Builtin::ReadOnly => {
                self.mark(builtin == Builtin::Export, arguments).await
            }
            Builtin::Jobs => {
                let lines: String = self
                    .jobs
                    .iter()
                    .enumerate()
                    .map(|(index, pid)| format!("[{}] {pid}\n", index + 1))
                    .collect();
                self.say(lines.as_bytes()).await
            }
            Builtin::Foreground => self.go_on(name == "fg").await,
            Builtin::Kill => match process::send(&self.sys, arguments, &self.jobs) {
                Ok(list) => self.say(list.as_bytes()).await,
                Err(failure) => {
                    self.complain(&format!("kill: {}", failure.message)).await;
                    failure.status
                }
            },
            Builtin::Local => {
                for argument in arguments {
                    let (name, value) = match argument.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (argument.as_str(), None),
                    };
                    let covered = self.variables.get(name).cloned();
                    if let Some(locals) = self.locals.last_mut() {
                        locals.push((name.to_owned(), covered));
                    }
                    if let Some(value) = value {
                        self.assign(name, value);
                    }
                }
                0
            }
            Builtin::Printf => {
                let printed = text::printed(arguments);
                let status = self.say(&printed.bytes).await;
                match printed.complaint {
                    Some(what) => {
                        self.complain(&format!("printf: {what}")).await;
                        1
                    }
                    None => status,
                }
            }
            Builtin::Pwd => {
                let line = format!("{}\n", self.sys.directory());
                self.say(line.as_bytes()).await
            }
            Builtin::Read => return self.read_builtin(arguments).await,
            Builtin::Set => return self.set(arguments).await,
            Builtin::Shift => {
                let count = arguments.first().map_or(Some(1), |text| text.parse().ok());
                match count {
                    Some(count) if count <= self.parameters.len() => {
                        self.parameters.drain(..count);
                        0
                    }
                    _ => 1,
                }
            }
            Builtin::Source => return self.source(arguments).await,
            Builtin::Test => {
                let mut operands = arguments;
                if name == "[" {
                    match operands.split_last() {
                        Some((last, rest)) if last == "]" => operands = rest,
                        _ => {
                            self.complain("[: missing ]").await;
                            self.status = 2;
                            return Ok(());
                        }
                    }
                }
                match condition::holds(&self.sys, operands) {
                    Ok(holds) => u8::from(!holds),
                    Err(what) => {
                        self.complain(&what).await;
                        2
                    }
                }
            }
            Builtin::Trap => self.trap(arguments).await,
            Builtin::Type => self.kinds(arguments).await,
            Builtin::Ulimit => self.ulimit(arguments).await,
            Builtin::Umask => match arguments.first() {
                None => {
                    let umask = self.sys.own(|process| process.umask);
                    self.say(format!("{umask:04o}\n").as_bytes()).await
                }
                Some(text) => match u32::from_str_radix(text, 8) {
                    Ok(umask) => {
                        self.sys.own(|process| process.umask = umask & 0o777);
                        0
                    }
                    Err(_) => 2,
                },
            },
            Builtin::Unset => {
                for name in arguments {
                    match name.as_str() {
                        "-f" | "-v" => {}
                        name => {
                            self.variables.remove(name);
                            self.functions.remove(name);
                        }
                    }
                }
                0
            }
            Builtin::Wait => self.wait_builtin(arguments).await,
        };
        Ok(())
    }

    async fn say(&mut self, bytes: &[u8]) -> u8 {
        match self.sys.write(1, bytes).await {
            Ok(()) => 0,
            Err(errno) => {
                self.complain(&format!("write error: {}", describe(errno)))
                    .await;
                1
            }
        }
    }

    async fn cd(&mut self, arguments: &[String]) -> u8 {
        let target = match arguments.first().map(String::as_str) {
            None => self.get("HOME").unwrap_or_else(|| "/".into()),
            Some("-") => self.get("OLDPWD").unwrap_or_default(),
            Some(path) => path.to_owned(),
        };
        let old = self.sys.directory();
        match self.sys.change_directory(&target) {
            Ok(()) => {
                let new = self.sys.directory();
                self.assign("OLDPWD", old);
                self.assign("PWD", new.clone());
                if arguments.first().is_some_and(|argument| argument == "-") {
                    return self.say(format!("{new}\n").as_bytes()).await;
                }
                0
            }
            Err(errno) => {
                self.complain(&format!("cd: can't cd to {target}: {}", describe(errno)))
                    .await;
                2
            }
        }
    }

    async fn command_builtin(&mut self, arguments: &[String]) -> Flow {
        match arguments {
            [] => self.status = 0,
            [flag, names @ ..] if flag == "-v" || flag == "-V" => {
                self.status = 0;
                for name in names {
                    let found = if find(name).is_some() || self.functions.contains_key(name) {
                        Some(name.clone())
                    } else {
                        self.find_program(name)
                    };
                    match found {
                        Some(found) => {
                            self.status = self.say(format!("{found}\n").as_bytes()).await
                        }
                        None => self.status = 127,
                    }
                }
            }
            _ => {
                let arguments = match arguments {
                    [flag, rest @ ..] if flag == "-p" => rest,
                    all => all,
                };
                if let Some(builtin) = arguments.first().and_then(|name| find(name)) {
                    return Box::pin(self.builtin(builtin, arguments.to_vec())).await;
                }
                let (argv, environment) = (arguments.to_vec(), self.environment());
                let parent = self.clone();
                let child = self.sys.fork(|sys| {
                    let mut shell = parent.child(sys);
                    Box::pin(async move { shell.execute(argv, environment).await })
                });
                self.status = match child {
                    Ok(child) => self.wait_for(child).await,
                    Err(_) => 1,
                };
            }
        }
        Ok(())
    }

    async fn mark(&mut self, export: bool, arguments: &[String]) -> u8 {
        let names: Vec<&String> = arguments.iter().filter(|name| *name != "-p").collect();
        if names.is_empty() {
            let word = if export { "export" } else { "readonly" };
            let lines: String = self
                .variables
                .iter()
                .filter(|(_, v)| if export { v.exported } else { v.read_only })
                .map(|(name, v)| match &v.value {
                    Some(value) => format!("{word} {name}='{}'\n", value.replace('\'', "'\\''")),
                    None => format!("{word} {name}\n"),
                })
                .collect();
            return self.say(lines.as_bytes()).await;
        }
        for argument in names {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            if let Some(value) = value {
                self.assign(name, value);
            }
            let variable = self.variables.entry(name.to_owned()).or_default();
            if export {
                variable.exported = true;
            } else {
                variable.read_only = true;
            }
        }
        0
    }

    async fn go_on(&mut self, foreground: bool) -> u8 {
        let Some(pid) = self.jobs.pop() else {
            self.complain("no current job").await;
            return 2;
        };
        let _ = self.sys.kill(-i64::from(pid), signal::CONT);
        if foreground {
            return self.wait_for(pid).await;
        }
        self.jobs.push(pid);
        0
    }

    async fn read_builtin(&mut self, arguments: &[String]) -> Flow {
        let mut raw = false;
        let mut names = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "-r" => raw = true,
                "-p" => {
                    let prompt = arguments.next().cloned().unwrap_or_default();
                    let _ = self.sys.write(2, prompt.as_bytes()).await;
                }
                "-t" | "-n" => drop(arguments.next()),
                name => names.push(name.to_owned()),
            }
        }
        if names.is_empty() {
            names.push("REPLY".into());
        }
        let mut line = Vec::new();
        let mut ended = false;
        // Offsets of what a backslash keeps from being a separator.
        let mut kept = Vec::new();
        loop {
            match self.sys.read_byte(0).await {
                Ok(Some(b'\n')) => break,
                Ok(Some(b'\\')) if !raw => match self.sys.read_byte(0).await {
                    Ok(Some(b'\n')) => {}
                    Ok(Some(byte)) => {
                        kept.push(line.len());
                        line.push(byte);
                    }
                    _ => {
                        ended = true;
                        break;
                    }
                },
                Ok(Some(byte)) => line.push(byte),
                Err(crate::fake::files::Errno::INTR) => self.run_traps().await?,
                Ok(None) | Err(_) => {
                    ended = true;
                    break;
                }
            }
        }
        let separators = self.get("IFS").unwrap_or_else(|| " \t\n".into());
        let is_separator =
            |at: usize, byte: u8| separators.as_bytes().contains(&byte) && !kept.contains(&at);
        let is_space = |at: usize, byte: u8| is_separator(at, byte) && byte.is_ascii_whitespace();
        let mut at = 0;
        let count = names.len();
        for (index, name) in names.into_iter().enumerate() {
            while at < line.len() && is_space(at, line[at]) {
                at += 1;
            }
            let start = at;
            let mut end = line.len();
            if index + 1 < count {
                while at < line.len() && !is_separator(at, line[at]) {
                    at += 1;
                }
                end = at;
                let mut others = 0;
                while at < line.len()
                    && is_separator(at, line[at])
                    && (is_space(at, line[at]) || others == 0)
                {
                    others += u32::from(!is_space(at, line[at]));
                    at += 1;
                }
            } else {
                while end > start && is_space(end - 1, line[end - 1]) {
                    end -= 1;
                }
            }
            let value = String::from_utf8_lossy(&line[start..end]).into_owned();
            self.assign(&name, value);
        }
        self.status = u8::from(ended);
        Ok(())
    }

    async fn set(&mut self, arguments: &[String]) -> Flow {
        self.status = 0;
        if arguments.is_empty() {
            let lines: String = self
                .variables
                .iter()
                .filter_map(|(name, v)| Some(format!("{name}='{}'\n", v.value.as_ref()?)))
                .collect();
            self.status = self.say(lines.as_bytes()).await;
            return Ok(());
        }
        let mut index = 0;
        while let Some(argument) = arguments.get(index) {
            let on = argument.starts_with('-');
            if argument == "--" {
                self.parameters = arguments[index + 1..].to_vec();
                return Ok(());
            }
            if argument.len() < 2 || !(on || argument.starts_with('+')) {
                self.parameters = arguments[index..].to_vec();
                return Ok(());
            }
            for flag in argument[1..].chars() {
                let known = if flag == 'o' {
                    index += 1;
                    let name = arguments.get(index).map_or("", String::as_str);
                    self.options.set_named(name, on)
                } else {
                    self.options.set(flag, on)
                };
                if !known {
                    self.complain(&format!("set: illegal option {argument}"))
                        .await;
                    self.status = 2;
                    return Err(Leave::Exit);
                }
            }
            index += 1;
        }
        Ok(())
    }

    async fn source(&mut self, arguments: &[String]) -> Flow {
        let Some(path) = arguments.first() else {
            self.status = 2;
            return Ok(());
        };
        match self.read_file(path).await {
            Ok(bytes) => {
                self.status = 0;
                match self.run_text(&String::from_utf8_lossy(&bytes)).await {
                    Err(Leave::Return) => Ok(()),
                    flow => flow,
                }
            }
            Err(errno) => {
                self.complain(&format!("can't open '{path}': {}", describe(errno)))
                    .await;
                self.status = 2;
                Err(Leave::Exit)
            }
        }
    }

    async fn trap(&mut self, arguments: &[String]) -> u8 {
        let arguments = match arguments.first().map(String::as_str) {
            Some("--") => &arguments[1..],
            _ => arguments,
        };
        let Some((action, signals)) = arguments.split_first() else {
            let lines: String = self
                .traps
                .iter()
                .map(|(number, action)| {
                    let name = signal::name(*number).unwrap_or("EXIT");
                    format!("trap -- '{}' {name}\n", action.replace('\'', "'\\''"))
                })
                .collect();
            return self.say(lines.as_bytes()).await;
        };
        // A number alone resets it.
        let (action, signals) = if signals.is_empty() {
            ("-", std::slice::from_ref(action))
        } else {
            (action.as_str(), signals)
        };
        for name in signals {
            let Some(number) = signal::parse(name) else {
                self.complain(&format!("trap: {name}: invalid signal specification"))
                    .await;
                return 1;
            };
            let disposition = match action {
                "-" => {
                    self.traps.remove(&number);
                    None
                }
                action => {
                    self.traps.insert(number, action.to_owned());
                    Some(if action.is_empty() {
                        Disposition::Ignore
                    } else {
                        Disposition::Handle
                    })
                }
            };
            if number != 0 && number != signal::KILL && number != signal::STOP {
                self.sys.set_disposition(number, disposition);
            }
        }
        0
    }

    async fn kinds(&mut self, names: &[String]) -> u8 {
        let mut status = 0;
        for name in names {
            let line = if self.functions.contains_key(name) {
                format!("{name} is a function\n")
            } else if find(name).is_some() {
                format!("{name} is a shell builtin\n")
            } else if let Some(path) = self.find_program(name) {
                format!("{name} is {path}\n")
            } else {
                status = 127;
                format!("{name}: not found\n")
            };
            self.say(line.as_bytes()).await;
        }
        status
    }

    async fn ulimit(&mut self, arguments: &[String]) -> u8 {
        let mut hard = false;
        let mut shown = ('f', 1, 512);
        for flag in arguments
            .iter()
            .filter_map(|argument| argument.strip_prefix('-'))
            .flat_map(str::chars)
        {
            match flag {
                'H' => hard = true,
                'S' => hard = false,
                // Letter, RLIMIT_* number, unit.
                'n' => shown = ('n', 7, 1),
                'u' | 'p' => shown = ('p', 6, 1),
                'c' => shown = ('c', 4, 512),
                't' => shown = ('t', 0, 1),
                'v' => shown = ('v', 9, 1024),
                _ => {}
            }
        }
        let (_, resource, unit) = shown;
        let limit = crate::fake::kernel::limit;
        let (soft, most) = self
            .sys
            .own(|process| Some(limit(process, resource)))
            .unwrap_or_default();
        let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
        if let Some(value) = wanted {
            let value = match value.as_str() {
                "unlimited" => u64::MAX,
                text => match text.parse::<u64>() {
                    Ok(number) => number.saturating_mul(unit),
                    Err(_) => return 2,
                },
            };
            if value > most {
                self.complain("ulimit: error setting limit: Operation not permitted")
                    .await;
                return 2;
            }
            self.sys
                .own(|process| process.limits.insert(resource, (value, most)));
            return 0;
        }
        let value = if hard { most } else { soft };
        let text = if value == u64::MAX {
            "unlimited\n".to_owned()
        } else {
            format!("{}\n", value / unit)
        };
        self.say(text.as_bytes()).await
    }
}
