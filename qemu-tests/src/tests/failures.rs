//! What goes wrong gives one clear sentence and the right status.

use super::mute;
use crate::harness::{Context, Test};
use anyhow::Result;

pub const TESTS: &[Test] = &[
    Test::new("failures", "an image that is not there is named", no_image),
    Test::new("failures", "a volume that is not there is named", no_volume),
    Test::new(
        "failures",
        "a boot image that is not there is named",
        no_boot_image,
    ),
    Test::new(
        "failures",
        "a flag of docker's that makes no sense here says why",
        no_flag,
    ),
    Test::new(
        "failures",
        "a user that is not in the image is named",
        no_user,
    ),
    Test::new(
        "failures",
        "a guest that never says hello shows its last console lines",
        no_hello,
    ),
    Test::new(
        "failures",
        "a kernel that panics at boot says so",
        panic_at_boot,
    ),
    Test::new(
        "failures",
        "a kernel that panics under a running process says so",
        panic_later,
    ),
    Test::new(
        "failures",
        "a process that runs out of memory is 137 and says so",
        out_of_memory,
    ),
];

fn no_image(t: &Context) -> Result<()> {
    t.run(["true"])
        .image("no-such/image:1.0")
        .done()?
        .status(125)
        .stdout("")
        .says(&["no-such/image:1.0"]);
    t.run(["true"])
        .image("Not A Reference")
        .done()?
        .status(125)
        .says(&["Not A Reference", "reference"]);
    t.run(["true"])
        .image("oci:/no/such/directory")
        .done()?
        .status(125)
        .says(&["/no/such/directory"]);
    Ok(())
}

fn no_volume(t: &Context) -> Result<()> {
    let missing = t.file("missing.vmdk");
    t.run(["true"])
        .flags(["-v", &format!("{}:/data", missing.display())])
        .done()?
        .status(125)
        .stdout("")
        .says(&["missing.vmdk"]);
    std::fs::write(t.file("nonsense.vmdk"), "this is no VMDK\n")?;
    t.run(["true"])
        .flags([
            "-v",
            &format!("{}:/data", t.file("nonsense.vmdk").display()),
        ])
        .done()?
        .status(125)
        .stdout("")
        .says(&["nonsense.vmdk"]);
    Ok(())
}

fn no_boot_image(t: &Context) -> Result<()> {
    t.run(["true"])
        .flags(["--boot-image", "/no/such/boot-image"])
        .done()?
        .status(125)
        .stdout("")
        .says(&["/no/such/boot-image"]);
    t.run(["true"])
        .flags(["--kernel", "/no/such/kernel"])
        .done()?
        .status(125)
        .says(&["/no/such/kernel"]);
    Ok(())
}

fn no_flag(t: &Context) -> Result<()> {
    t.run(["true"])
        .flags(["--privileged"])
        .done()?
        .status(125)
        .stdout("")
        .says(&["--privileged", "not supported"]);
    Ok(())
}

fn no_user(t: &Context) -> Result<()> {
    t.run(["true"])
        .flags(["-u", "stranger"])
        .done()?
        .status(125)
        .stdout("")
        .says(&["stranger"]);
    Ok(())
}

fn no_hello(t: &Context) -> Result<()> {
    let initramfs = t.file("mute.cpio");
    std::fs::write(&initramfs, mute::initramfs())?;
    t.run(["true"])
        .flags(["--append", "loglevel=7", "--boot-timeout", "15", "--initrd"])
        .flags([&initramfs])
        .done()?
        .status(125)
        .stdout("")
        .says(&["did not answer", "15 s"])
        .shows_console("Run /init as init process");
    Ok(())
}

fn panic_at_boot(t: &Context) -> Result<()> {
    t.run(["true"])
        .flags(["--append", "rdinit=/no-such-init"])
        .done()?
        .status(125)
        .stdout("")
        .says(&["panic"])
        .shows_console("Kernel panic - not syncing");
    Ok(())
}

fn panic_later(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "echo before; x=x; while :; do x=$x$x; done"])
        .flags(["-m", "96m", "--append", "sysctl.vm.panic_on_oom=2"])
        .done()?
        .status(125)
        .stdout("before\n")
        .says(&["panic"])
        .shows_console("Kernel panic - not syncing");
    Ok(())
}

fn out_of_memory(t: &Context) -> Result<()> {
    t.run([
        "sh",
        "-c",
        "echo before; x=x; while :; do x=$x$x; done; echo after",
    ])
    .flags(["-m", "96m"])
    .done()?
    .status(137)
    .stdout("before\n")
    .says(&["ran out of memory"]);
    // Another process of the container may be the one that is killed.
    t.script("if sh -c 'x=x; while :; do x=$x$x; done'; then exit 1; else [ $? = 137 ]; fi")
        .flags(["-m", "96m"])
        .done()?
        .finished();
    Ok(())
}
