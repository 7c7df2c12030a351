//! What forks have of their own, and that they leave nothing.

use super::{Templates, nothing_left};
use crate::harness::Context;
use anyhow::Result;
use std::collections::BTreeSet;

/// Says what no two machines may have in common, a line each: random bytes first of all.
const IDENTITY: &str = "
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
head -c 32 /dev/random | od -An -v -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/uuid
mktemp -u XXXXXXXXXXXX
od -An -v -tx8 /proc/self/auxv | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/boot_id
cat /etc/machine-id
cat /sys/class/dmi/id/product_uuid
cat /etc/hostname
hostname
cat /sys/class/net/eth0/address";

/// What was said, line by line, each with what it is.
#[derive(Default)]
struct Seen(BTreeSet<(usize, String)>, usize);

impl Seen {
    fn add(&mut self, said: &str) {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 11, "{said}");
        for (number, line) in lines.into_iter().enumerate() {
            assert!(line.len() >= 12, "{line:?} in {said}");
            let new = self.0.insert((number, line.to_owned()));
            assert!(
                new,
                "two forks of {} have {line:?} (line {number})",
                self.1 + 1
            );
        }
        self.1 += 1;
    }
}

pub(super) fn in_sequence(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut seen = Seen::default();
    let count = if t.environment().full() { 1000 } else { 20 };
    for _ in 0..count {
        let done = templates.run(IDENTITY, &[]).done()?;
        done.stderr("");
        seen.add(&done.finished());
    }
    nothing_left(t)?;
    let home = templates.only()?;
    let mut names: Vec<_> = std::fs::read_dir(&home)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    names.sort();
    assert_eq!(names, ["kernel", "ram", "state", "template.json"]);
    Ok(())
}

pub(super) fn at_once(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut seen = Seen::default();
    let count = if t.environment().full() { 100 } else { 10 };
    let script = format!("{IDENTITY}\nread line");
    let mut running = (0..count)
        .map(|_| {
            templates
                .run(&script, &["-i", "-m", "96m", "--boot-timeout", "300"])
                .stdin_open()
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    for one in &mut running {
        // The last line of the identity is the address of the vNIC.
        for _ in 0..5 {
            one.expect(":");
        }
    }
    let mut keys = BTreeSet::new();
    for container in std::fs::read_dir(t.state().join("runs"))? {
        let machines = container?.path().join("vm/machines");
        for machine in std::fs::read_dir(machines)? {
            let key = std::fs::read(machine?.path().join("channel.key"))?;
            assert_ne!(key, [0; 32], "the template's own key");
            assert!(keys.insert(key), "two forks have one key");
        }
    }
    assert_eq!(keys.len(), count);
    for mut one in running {
        one.write(b"\n")?;
        let done = one.wait()?;
        done.stderr("");
        seen.add(&done.finished());
    }
    templates.only()?;
    nothing_left(t)
}
