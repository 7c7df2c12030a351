//! Two builds of an artefact are the same bytes.

use crate::harness::{Context, Test, skip};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "builds",
        "two imports of an image make the same disk",
        disks,
    ),
    Test::new(
        "builds",
        "two builds of tether, the initramfs and the ISO are identical",
        boot_images,
    )
    .guests(u32::MAX)
    .minutes(20),
    Test::new("builds", "two builds of the kernel are identical", kernels)
        .guests(u32::MAX)
        .minutes(90)
        .full(),
];

fn disks(t: &Context) -> Result<()> {
    let layout = t.environment().sample_layout("busybox");
    if !layout.is_dir() {
        return skip("there is no sample/busybox: run scripts/sample-image busybox");
    }
    let mut disks = Vec::new();
    for store in ["one", "two"] {
        let state = t.file(store);
        let source = format!("oci:{}", layout.display());
        t.vch(["image", "import", "--tag", "twice", &source])
            .variable("VCH_STATE", &state)
            .done()?
            .status(0);
        let images = state.join("images/images");
        let ids: Vec<PathBuf> = std::fs::read_dir(&images)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        assert_eq!(ids.len(), 1, "{ids:?}");
        disks.push(ids[0].join("image.vmdk"));
    }
    assert_ne!(disks[0], disks[1]);
    same(&disks[0], &disks[1])
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    if read(one)? != read(other)? {
        bail!("{} and {} differ", one.display(), other.display());
    }
    Ok(())
}

/// Runs one of the project's scripts with a cache of its own; the directory it prints.
fn script(t: &Context, name: &str, variables: &[(&str, &Path)]) -> Result<PathBuf> {
    let script = t.environment().source().join("scripts").join(name);
    if !script.is_file() {
        return skip("the sources are not here: set VCH_SOURCE or --source");
    }
    let output = Command::new(&script)
        .env("TETHER_CACHE", t.file("cache"))
        .env(crate::harness::MARK, t.directory())
        .envs(variables.iter().copied())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            script.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let path = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    Ok(path.into())
}

fn boot_images(t: &Context) -> Result<()> {
    // The first is the one under test; the second is made from the same kernel in another place.
    let first = t.environment().boot_image();
    let kernel = first.join("bzImage");
    let second = script(t, "boot-image", &[("KERNEL", &kernel)])?;
    for file in ["bzImage", "initramfs.cpio", "tether.iso"] {
        same(&first.join(file), &second.join(file))?;
    }
    Ok(())
}

fn kernels(t: &Context) -> Result<()> {
    let built = script(t, "kernel", &[])?;
    same(
        &t.environment().boot_image().join("bzImage"),
        &built.join("bzImage"),
    )
}
