//! Images as disks, and the disks of containers and volumes.

use crate::archive::{self, CHANGED, Entry, Kind};
use crate::environment::program;
use crate::harness::{Context, Test, skip};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const TESTS: &[Test] = &[
    Test::new(
        "images",
        "sample/debian runs bash, apt-get and perl, and ps shows the process as 1",
        debian,
    )
    .minutes(5),
    Test::new(
        "images",
        "the image's disk passes e2fsck before, and the child after power-off",
        e2fsck,
    ),
    Test::new("images", "what a container writes is its own", own_disk),
    Test::new(
        "images",
        "a new volume is made, keeps its data, and can be read-only",
        volume,
    ),
    Test::new(
        "images",
        "an ext4 VMDK of someone else's is a volume",
        foreign_volume,
    ),
    Test::new(
        "images",
        "an empty volume gets what the image has there",
        populate,
    ),
    Test::new(
        "images",
        "a volume filled from the image has its owners, attributes, links and devices",
        filled,
    ),
    Test::new(
        "images",
        "a root directory runs without being imported by hand",
        rootfs,
    ),
];

fn debian(t: &Context) -> Result<()> {
    let script = "set -eu
        echo bash ${BASH_VERSION%%.*}
        apt-get --version | head -1 | cut -d' ' -f1
        perl -e 'print join(\",\", map { $_ * $_ } 1..5), \"\\n\"'
        ps -p $$ -o pid=,comm=
        echo done";
    let said = t
        .run(["bash", "-c", script])
        .image("sample/debian")
        .done()?
        .finished();
    let words: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words,
        [
            vec!["bash", "5"],
            vec!["apt"],
            vec!["1,4,9,16,25"],
            vec!["1", "bash"]
        ]
    );
    Ok(())
}

/// Checks the filesystem in a VMDK as it is, through a raw copy.
fn check_filesystem(t: &Context, disk: &Path) -> Result<()> {
    let (Some(qemu_img), Some(e2fsck)) = (program("qemu-img"), program("e2fsck")) else {
        return skip("needs qemu-img and e2fsck: install qemu-utils and e2fsprogs");
    };
    let raw = t.file("checked.raw");
    must(
        Command::new(qemu_img)
            .args(["convert", "-f", "vmdk", "-O", "raw"])
            .arg(disk)
            .arg(&raw),
    )?;
    must(Command::new(e2fsck).arg("-fn").arg(&raw))?;
    std::fs::remove_file(&raw)?;
    Ok(())
}

fn must(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// The disk of the image in the shared store.
pub fn image_disk(t: &Context, image: &str) -> Result<PathBuf> {
    if let Some(sample) = image.strip_prefix("sample/") {
        t.environment().need_sample(sample)?;
    }
    let done = t.vch(["image", "inspect", image]).done()?;
    done.status(0);
    let found: serde_json::Value = serde_json::from_slice(&done.out)?;
    let record = found.get(0).unwrap_or(&found);
    match record.get("disk").and_then(|disk| disk.as_str()) {
        Some(disk) => Ok(disk.into()),
        None => bail!("vch image inspect {image} names no disk: {found}"),
    }
}

fn e2fsck(t: &Context) -> Result<()> {
    for (image, name) in [("sample/busybox", "small"), ("sample/debian", "big")] {
        check_filesystem(t, &image_disk(t, image)?)
            .with_context(|| format!("the disk of {image}"))?;
        // Files made, changed, moved over one another, removed, and still being written at the end.
        t.script(
            "mkdir /made; cp -a /etc /made; rm -r /made/etc; echo changed >>/etc/passwd
             i=0; while [ $i -lt 200 ]; do echo $i >/made/$i; i=$((i+1)); done
             dd if=/dev/zero of=/made/zeros bs=64k count=64 2>/dev/null; mv /made/zeros /made/7
             (while :; do echo x >>/made/growing; done) & ",
        )
        .image(image)
        .flags(["--name", name])
        .done()?
        .finished();
        let disk = t.state().join("runs").join(name).join("disk.vmdk");
        check_filesystem(t, &disk).with_context(|| format!("a container's disk of {image}"))?;
        // The image is what it was.
        check_filesystem(t, &image_disk(t, image)?)?;
    }
    Ok(())
}

fn own_disk(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "echo mine >/etc/passwd; rm -r /var; ls /"])
        .done()?
        .status(0);
    t.run(["sh", "-c", "head -1 /etc/passwd; ls -d /var"])
        .done()?
        .status(0)
        .stdout("root:x:0:0:root:/root:/bin/sh\n/var\n");
    Ok(())
}

fn volume(t: &Context) -> Result<()> {
    let disk = t.file("data.vmdk");
    let at = |options: &str| format!("{}:/data{options}", disk.display());
    t.script("echo kept >/data/file; df -m /data | awk 'NR == 2 { print ($2 > 40 && $2 <= 64) }'")
        .flags(["-v", &at(":size=64m")])
        .done()?
        .stdout("1\ndone\n")
        .finished();
    t.script("cat /data/file; if touch /data/x 2>/dev/null; then exit 1; fi")
        .flags(["-v", &at(":ro")])
        .done()?
        .stdout("kept\ndone\n");
    t.script("cat /data/file; touch /data/x")
        .flags(["-v", &at("")])
        .done()?
        .stdout("kept\ndone\n");
    check_filesystem(t, &disk)
}

fn foreign_volume(t: &Context) -> Result<()> {
    let (Some(qemu_img), Some(mke2fs)) = (program("qemu-img"), program("mke2fs")) else {
        return skip("needs qemu-img and mke2fs: install qemu-utils and e2fsprogs");
    };
    let tree = t.file("tree");
    std::fs::create_dir(&tree)?;
    std::fs::write(tree.join("letter"), "from far away\n")?;
    let (raw, disk) = (t.file("foreign.raw"), t.file("foreign.vmdk"));
    must(
        Command::new(mke2fs)
            .args(["-q", "-t", "ext4", "-d"])
            .args([&tree, &raw])
            .arg("32m"),
    )?;
    must(
        Command::new(qemu_img)
            .args(["convert", "-f", "raw", "-O", "vmdk"])
            .args([&raw, &disk]),
    )?;
    t.script("cat /data/letter; echo reply >/data/reply")
        .flags(["-v", &format!("{}:/data", disk.display())])
        .done()?
        .stdout("from far away\ndone\n");
    check_filesystem(t, &disk)
}

fn populate(t: &Context) -> Result<()> {
    let disk = t.file("var.vmdk");
    let at = |options: &str| format!("{}:/var{options}", disk.display());
    t.script("stat -c '%u %a' /var/www /var/tmp; echo more >/var/www/more")
        .flags(["-v", &at(":size=64m")])
        .done()?
        .stdout("33 755\n0 1777\ndone\n");
    t.script("cat /var/www/more")
        .flags(["-v", &at("")])
        .done()?
        .stdout("more\ndone\n");
    Ok(())
}

fn rootfs(t: &Context) -> Result<()> {
    let Some(busybox) = program("busybox") else {
        return skip("needs a static busybox on this machine: install busybox-static");
    };
    let root = t.file("rootfs");
    std::fs::create_dir_all(root.join("bin"))?;
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    t.run(["/bin/busybox", "echo", "hello"])
        .image(&format!("dir:{}", root.display()))
        .done()?
        .status(0)
        .stdout("hello\n");
    Ok(())
}

/// `CAP_CHOWN`, permitted and effective (linux/capability.h, `vfs_cap_data` of revision 2).
const CAPABILITY: [u8; 20] = {
    let mut bytes = [0; 20];
    bytes[0] = 1;
    bytes[3] = 2;
    bytes[4] = 1;
    bytes
};

/// An access control list that lets user 4321 read (linux/posix_acl_xattr.h).
fn access_list() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let nobody = u32::MAX;
    for (tag, permissions, id) in [
        (0x01u16, 6u16, nobody),
        (0x02, 4, 4321),
        (0x04, 0, nobody),
        (0x10, 4, nobody),
        (0x20, 0, nobody),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn filled(t: &Context) -> Result<()> {
    let (Some(busybox), Some(qemu_img), Some(debugfs)) =
        (program("busybox"), program("qemu-img"), program("debugfs"))
    else {
        return skip("needs busybox-static, qemu-utils and e2fsprogs");
    };
    let busybox = std::fs::read(busybox)?;
    let list = access_list();
    let layer = [
        Entry::new("bin", Kind::Directory, 0o755),
        Entry::new("bin/busybox", Kind::File(&busybox), 0o755),
        Entry::new("bin/sh", Kind::Symlink("busybox"), 0o777),
        Entry::new("data", Kind::Directory, 0o751).owner(33, 34),
        Entry::new("data/plain", Kind::File(b"plain\n"), 0o640).owner(1234, 5678),
        Entry::new("data/root", Kind::File(b""), 0o4755),
        Entry::new("data/first", Kind::File(b"linked\n"), 0o644),
        Entry::new("data/sub", Kind::Directory, 0o1777),
        Entry::new("data/sub/second", Kind::Link("data/first"), 0o644),
        Entry::new("data/link", Kind::Symlink("/no/where"), 0o777).owner(7, 8),
        Entry::new("data/null", Kind::Character(1, 3), 0o666),
        Entry::new("data/block", Kind::Block(7, 9), 0o660).owner(0, 6),
        Entry::new("data/pipe", Kind::Fifo, 0o622),
        Entry::new("data/busybox-capable", Kind::File(&busybox), 0o755)
            .attribute("security.capability", &CAPABILITY),
        Entry::new("data/listed", Kind::File(b"for 4321\n"), 0o640)
            .attribute("system.posix_acl_access", &list),
        Entry::new("data/noted", Kind::File(b""), 0o644).attribute("user.note", b"from the image"),
    ];
    let image = t.file("image.tar");
    archive::write(&image, &layer)?;
    let disk = t.file("data.vmdk");
    let volume = |options: &str| {
        [
            "-v".to_owned(),
            format!("{}:/data{options}", disk.display()),
        ]
    };
    t.run(["sh", "-c", "busybox cat /data/plain"])
        .image(&format!("docker-archive:{}", image.display()))
        .flags(volume(":size=64m"))
        .done()?
        .status(0)
        .stdout("plain\n");
    // Another image's container sees nothing but the volume.
    let said = t
        .script(
            "cd /data
             stat -c '%n %a %u:%g %F %Y' . plain root sub link null block pipe
             stat -c '%n %t:%T' null block
             stat -c '%h' first
             [ $(stat -c %i first) = $(stat -c %i sub/second) ]
             cat first sub/second plain
             readlink link
             echo lost >null
             ls -A . sub",
        )
        .flags(volume(":ro"))
        .done()?
        .finished();
    assert_eq!(
        said,
        format!(
            ". 751 33:34 directory {CHANGED}
plain 640 1234:5678 regular file {CHANGED}
root 4755 0:0 regular empty file {CHANGED}
sub 1777 0:0 directory {CHANGED}
link 777 7:8 symbolic link {CHANGED}
null 666 0:0 character special file {CHANGED}
block 660 0:6 block special file {CHANGED}
pipe 622 0:0 fifo {CHANGED}
null 1:3
block 7:9
2
linked
linked
plain
/no/where
.:
block
busybox-capable
first
link
listed
noted
null
pipe
plain
root
sub

sub:
second
"
        )
    );
    // Attributes do what they are for.
    let said = t
        .script(
            "cat /data/listed
             if cat /data/plain 2>/dev/null; then exit 1; fi
             /data/busybox-capable grep CapEff /proc/self/status
             grep CapEff /proc/self/status",
        )
        .flags(volume(":ro"))
        .flags(["-u", "4321:99"])
        .done()?
        .finished();
    assert_eq!(
        said,
        "for 4321\nCapEff:\t0000000000000001\nCapEff:\t0000000000000000\n"
    );
    check_filesystem(t, &disk)?;
    let raw = t.file("data.raw");
    must(
        Command::new(qemu_img)
            .args(["convert", "-f", "vmdk", "-O", "raw"])
            .args([&disk, &raw]),
    )?;
    let note = must(
        Command::new(debugfs)
            .args(["-R", "ea_get -V noted user.note"])
            .arg(&raw),
    )?;
    assert_eq!(String::from_utf8_lossy(&note).trim_end(), "from the image");
    Ok(())
}
