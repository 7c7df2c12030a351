//! /proc: made anew from the process table whenever a path may lead there.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use super::{Kernel, Pid, Process, State};
use crate::fake::files::mounts::Source;
use crate::fake::files::tree::{Inode, Kind, Node, ROOT, Tree};

impl Process {
    /// Its name: the program's, at most 15 bytes (`TASK_COMM_LEN`).
    pub fn name(&self) -> String {
        let program = self.argv.first().map_or("", String::as_str);
        let name = program.rsplit('/').next().unwrap_or("");
        name.chars().take(15).collect()
    }

    /// State letter of proc(5).
    pub fn letter(&self, runs: bool) -> u8 {
        match self.state {
            State::Running if runs => b'R',
            State::Running => b'S',
            State::Stopped => b'T',
            State::Zombie(_) => b'Z',
        }
    }
}

impl Kernel {
    /// Shows /proc as it is now to `pid`.
    pub fn show_processes(&mut self, pid: Pid) {
        let Some(number) = self
            .mounts
            .iter()
            .position(|mount| mount.source == Source::Proc)
        else {
            return;
        };
        let cwds: std::collections::BTreeMap<Pid, String> = self
            .processes
            .iter()
            .map(|(pid, process)| (*pid, self.mounts.path_of(process.cwd)))
            .collect();
        let now = self.stamp();
        // A tree of its own, so that what is open stays as it was.
        let mut tree = Tree::new(u64::MAX, 0o555, now);
        let mut put = |directory: Inode, name: &str, node: Node| {
            tree.create(directory, name.as_bytes(), node, now)
                .unwrap_or(ROOT)
        };
        let file = |text: String| Node::file(text, 0o444, now);
        let link = |target: String| Node::new(Kind::Symlink(target.into_bytes()), 0o777, now);
        let visible = || self.processes.range(..super::HIDDEN);
        for (number, process) in visible() {
            let directory = put(ROOT, &number.to_string(), Node::directory(0o555, now));
            let mut cmdline = process.argv.join("\0");
            cmdline.push('\0');
            if !process.lives() {
                cmdline.clear();
            }
            put(directory, "cmdline", file(cmdline));
            put(directory, "comm", file(format!("{}\n", process.name())));
            let mut environ = process.environment.join("\0");
            environ.push('\0');
            put(directory, "environ", Node::file(environ, 0o400, now));
            let letter = char::from(process.letter(*number == pid));
            put(
                directory,
                "stat",
                file(format!(
                    "{number} ({}) {letter} {} {} {} {} -1 4194304 0 0 0 0 {} 0 0 0 20 0 1 0 {} {} {}\n",
                    process.name(),
                    process.parent,
                    process.group,
                    process.session,
                    process.terminal.map_or(0, |tty| 34816 + tty),
                    process.cpu.as_millis() / 10,
                    process.started.as_millis() / 10,
                    process.resident,
                    process.resident / 4096,
                )),
            );
            let who = &process.who;
            put(
                directory,
                "status",
                file(format!(
                    "Name:\t{}\nState:\t{letter}\nPid:\t{number}\nPPid:\t{}\n\
                     Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n\
                     Groups:\t{}\nVmRSS:\t{} kB\nThreads:\t1\nNSpid:\t{number}\n",
                    process.name(),
                    process.parent,
                    who.groups
                        .iter()
                        .map(u32::to_string)
                        .collect::<Vec<_>>()
                        .join(" "),
                    process.resident / 1024,
                    uid = who.uid,
                    gid = who.gid,
                )),
            );
            put(directory, "limits", file(limits(process)));
            put(
                directory,
                "cwd",
                link(cwds.get(number).cloned().unwrap_or_default()),
            );
            put(directory, "root", link("/".into()));
            let descriptors = put(directory, "fd", Node::directory(0o500, now));
            for fd in process.descriptors.keys() {
                let node = Node::new(Kind::Descriptor(*number, *fd), 0o700, now);
                put(descriptors, &fd.to_string(), node);
            }
        }
        put(ROOT, "self", link(pid.to_string()));
        let kib = |bytes: u64| bytes / 1024;
        let free = self.memory.saturating_sub(self.resident());
        let mut meminfo = String::new();
        for (name, bytes) in [
            ("MemTotal", self.memory),
            ("MemFree", free),
            ("MemAvailable", free),
            ("SwapTotal", 0),
            ("SwapFree", 0),
        ] {
            let _ = writeln!(meminfo, "{:<16}{:>8} kB", format!("{name}:"), kib(bytes));
        }
        put(ROOT, "meminfo", file(meminfo));
        let processors = (0..self.processors)
            .map(|number| format!("processor\t: {number}\nmodel name\t: simulated\n\n"));
        put(ROOT, "cpuinfo", file(processors.collect()));
        let up = self.uptime().as_secs_f64();
        put(ROOT, "uptime", file(format!("{up:.2} {up:.2}\n")));
        put(ROOT, "loadavg", file("0.00 0.00 0.00 1/1 1\n".into()));
        put(
            ROOT,
            "version",
            file("Linux version 6.1.0 (simulated)\n".into()),
        );
        put(ROOT, "cmdline", file("console=ttyS0\n".into()));
        let mounts = self.mounts.iter().map(|mount| {
            let kind = match mount.source {
                Source::Disk => "ext4",
                Source::Memory => "tmpfs",
                Source::Proc => "proc",
            };
            let access = if mount.read_only { "ro" } else { "rw" };
            format!("{kind} {} {kind} {access} 0 0\n", mount.target)
        });
        put(ROOT, "mounts", file(mounts.collect()));
        let sys = put(ROOT, "sys", Node::directory(0o555, now));
        let kernel = put(sys, "kernel", Node::directory(0o555, now));
        put(kernel, "hostname", file(format!("{}\n", self.hostname)));
        put(kernel, "domainname", file(format!("{}\n", self.domainname)));
        put(kernel, "osrelease", file("6.1.0\n".into()));
        put(kernel, "pid_max", file("32768\n".into()));
        if let Some(mount) = self.mounts.get_mut(number) {
            mount.disk = Arc::new(Mutex::new(tree));
        }
    }
}

/// /proc/PID/limits, for those that `docker run --ulimit` is tried with.
fn limits(process: &Process) -> String {
    let mut text = format!(
        "{:<26}{:<21}{:<21}{:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    let word = |value: u64| {
        if value == u64::MAX {
            "unlimited".to_owned()
        } else {
            value.to_string()
        }
    };
    // Numbers: asm-generic/resource.h.
    for (resource, name, units) in [
        (0, "Max cpu time", "seconds"),
        (1, "Max file size", "bytes"),
        (4, "Max core file size", "bytes"),
        (6, "Max processes", "processes"),
        (7, "Max open files", "files"),
    ] {
        let (soft, hard) = limit(process, resource);
        let _ = writeln!(
            text,
            "{name:<26}{:<21}{:<21}{units:<10}",
            word(soft),
            word(hard)
        );
    }
    text
}

/// A resource's limits, soft and hard.
pub fn limit(process: &Process, resource: u8) -> (u64, u64) {
    let default = match resource {
        // The kernel's own for files (INR_OPEN_CUR, INR_OPEN_MAX).
        7 => (1024, 4096),
        _ => (u64::MAX, u64::MAX),
    };
    process.limits.get(&resource).copied().unwrap_or(default)
}
