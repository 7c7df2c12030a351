//! When a template is made, made anew, or waited for.

use super::{Templates, nothing_left};
use crate::harness::Context;
use crate::vch::Done;
use anyhow::{Context as _, Result};
use std::path::Path;

pub(super) fn changed_inputs(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let own = t.file("initramfs.cpio");
    let copy = || std::fs::copy(t.environment().boot_image().join("initramfs.cpio"), &own);
    copy()?;
    let own = own.to_string_lossy().into_owned();
    let with: [&[&str]; 4] = [
        &[],
        &["-m", "128m"],
        &["--append", "mitigations=off"],
        &["--initrd", &own],
    ];
    for (number, flags) in with.into_iter().enumerate() {
        for _ in 0..2 {
            let done = templates.run("grep MemTotal /proc/meminfo", flags).done()?;
            done.stderr("").finished();
        }
        assert_eq!(templates.all()?.len(), number + 1, "after {flags:?}");
    }
    // Another file under the same name.
    std::fs::remove_file(&own)?;
    copy()?;
    templates
        .run("true", &["--initrd", &own])
        .done()?
        .finished();
    assert_eq!(templates.all()?.len(), with.len() + 1);
    Ok(())
}

/// Writes over the middle of a file.
fn damage(path: &Path) -> Result<Vec<u8>> {
    let mut content = std::fs::read(path)?;
    let middle = content.len() / 2;
    for byte in content.iter_mut().skip(middle).take(4096) {
        *byte ^= 0xff;
    }
    std::fs::write(path, &content)?;
    Ok(content)
}

pub(super) fn damaged(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let run = || -> Result<Done> { templates.run("echo hello", &[]).done() };
    run()?.finished();
    let home = templates.only()?;
    let mut made = vec![templates.made()?];
    for file in ["state", "ram", "template.json"] {
        damage(&home.join(file)).with_context(|| file.to_owned())?;
        assert_eq!(run()?.stderr("").finished(), "hello\n");
        made.push(templates.made()?);
    }
    // A state that is what its record says, and that no QEMU takes.
    let state = damage(&home.join("state"))?;
    let record = std::fs::read_to_string(home.join("template.json"))?;
    let (before, after) = record
        .split_once("\"state\"")
        .and_then(|(before, rest)| Some((before, rest.split_once("\"sha256\": \"")?)))
        .map(|(before, (between, after))| (format!("{before}\"state\"{between}"), &after[64..]))
        .context("no hash of the state")?;
    let hash = sha256(&state)?;
    std::fs::write(
        home.join("template.json"),
        format!("{before}\"sha256\": \"{hash}{after}"),
    )?;
    assert_eq!(run()?.stderr("").finished(), "hello\n");
    made.push(templates.made()?);
    let all = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), all, "one of them was used");
    nothing_left(t)
}

fn sha256(content: &[u8]) -> Result<String> {
    use std::io::Write as _;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(content)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.chars().take(64).collect())
}

pub(super) fn waited_for(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let running = (0..4)
        .map(|_| templates.run("echo hello", &["-m", "96m"]).spawn())
        .collect::<Result<Vec<_>>>()?;
    for one in running {
        assert_eq!(one.wait()?.stderr("").finished(), "hello\n");
    }
    templates.only()?;
    Ok(())
}
