//! Flags of `docker run` do what they do there.

use crate::harness::{Context, Test};
use anyhow::Result;

pub const TESTS: &[Test] = &[
    Test::new(
        "flags",
        "-e and --env-file make the environment",
        environment,
    ),
    Test::new("flags", "-w is where it starts, made if missing", workdir),
    Test::new("flags", "-u takes names, numbers and groups", users),
    Test::new(
        "flags",
        "names and addresses go into /etc without touching the image",
        names,
    ),
    Test::new("flags", "--entrypoint replaces the image's", entrypoint),
    Test::new("flags", "-m and --cpus are what the guest has", size),
    Test::new("flags", "--init is process 1, forwards and reaps", init),
    Test::new(
        "flags",
        "--read-only leaves only --tmpfs to write to",
        read_only,
    ),
    Test::new("flags", "--ulimit sets both limits", ulimit),
    Test::new("flags", "--label and --cidfile tell who it is", label),
    Test::new("flags", "a name is taken once", name),
    Test::new("flags", "--rm leaves nothing", rm),
];

fn environment(t: &Context) -> Result<()> {
    let file = t.file("variables");
    std::fs::write(
        &file,
        "# a comment\nFROM_FILE=a b\n\nPASSED_BY_FILE\nTWICE=file\n",
    )?;
    let done = t
        .run(["env"])
        .variable("PASSED", "by name")
        .variable("PASSED_BY_FILE", "by file")
        .flags([
            "-e",
            "GIVEN=x=y",
            "-e",
            "PASSED",
            "-e",
            "ABSENT",
            "-e",
            "EMPTY=",
        ])
        .flags(["-e", "TWICE=flag", "--hostname", "box"])
        .flags(["--env-file".as_ref(), file.as_os_str()])
        .done()?;
    done.status(0);
    let mut lines: Vec<String> = done.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "EMPTY=",
            "FROM_FILE=a b",
            "GIVEN=x=y",
            "HOME=/root",
            "HOSTNAME=box",
            "PASSED=by name",
            "PASSED_BY_FILE=by file",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TWICE=flag",
        ]
    );
    Ok(())
}

fn workdir(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "pwd; stat -c '%u:%g %a' ."])
        .flags(["-w", "/made/for/me", "-u", "daemon"])
        .done()?
        .status(0)
        .stdout("/made/for/me\n0:0 755\n");
    t.run(["true"])
        .flags(["-w", "relative"])
        .done()?
        .status(125)
        .says(&["relative", "absolute path"]);
    Ok(())
}

fn users(t: &Context) -> Result<()> {
    for (flags, said) in [
        // Groups of the image's /etc/group come with a user, unless a group is named.
        (&["-u", "daemon"][..], "1 1 1 29 33 /usr/sbin"),
        (&["-u", "daemon:www-data"], "1 33 33 /usr/sbin"),
        (
            &[
                "-u",
                "1234:5678",
                "--group-add",
                "audio",
                "--group-add",
                "99",
            ],
            "1234 5678 5678 29 99 /",
        ),
    ] {
        let done = t
            .run(["sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME"])
            .flags(flags)
            .done()?;
        done.status(0);
        // The order of supplementary groups is the kernel's.
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(
            sorted(&done.text()),
            sorted(said),
            "{flags:?}: {}",
            done.text()
        );
    }
    Ok(())
}

fn names(t: &Context) -> Result<()> {
    let said = t
        .script(
            "hostname
             cat /etc/hostname
             grep -w box /etc/hosts | tr -s '\\t' ' '
             grep -w db /etc/hosts | tr -s '\\t' ' '
             grep -c localhost /etc/hosts >/dev/null
             grep ^nameserver /etc/resolv.conf
             grep ^search /etc/resolv.conf
             grep ^options /etc/resolv.conf",
        )
        .flags(["-h", "box", "--add-host", "db:10.9.8.7"])
        .flags([
            "--dns",
            "10.1.2.3",
            "--dns",
            "10.1.2.4",
            "--dns-search",
            "example.org",
        ])
        .flags(["--dns-option", "ndots:2"])
        .done()?
        .finished();
    assert_eq!(
        said,
        "box\nbox\n10.0.2.15 box\n10.9.8.7 db\nnameserver 10.1.2.3\nnameserver 10.1.2.4\n\
         search example.org\noptions ndots:2\n"
    );
    Ok(())
}

fn entrypoint(t: &Context) -> Result<()> {
    t.run(["one", "two"])
        .flags(["--entrypoint", "echo"])
        .done()?
        .status(0)
        .stdout("one two\n");
    Ok(())
}

fn size(t: &Context) -> Result<()> {
    let said = t
        .script("nproc; awk '$1 == \"MemTotal:\" { print $2 }' /proc/meminfo")
        .flags(["-m", "200m", "--cpus", "1.5"])
        .done()?
        .finished();
    let numbers: Vec<u64> = said.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(numbers[0], 2);
    // The kernel keeps some for itself, and never gives more.
    let (least, most) = (200 * 1024 * 80 / 100, 200 * 1024);
    assert!((least..=most).contains(&numbers[1]), "{} KiB", numbers[1]);
    Ok(())
}

fn init(t: &Context) -> Result<()> {
    let said = t
        .script("[ $$ != 1 ]; echo $PPID; cat /proc/1/comm")
        .flags(["--init"])
        .done()?
        .finished();
    assert!(said.starts_with("1\n"), "{said}");
    let mut running = t
        .run([
            "sh",
            "-c",
            "trap 'echo told; exit 6' USR1; echo ready; while :; do sleep 1; done",
        ])
        .flags(["--init"])
        .spawn()?;
    running.expect("ready\n");
    running.signal(rustix::process::Signal::USR1)?;
    running.wait()?.status(6).stdout("ready\ntold\n");
    Ok(())
}

fn read_only(t: &Context) -> Result<()> {
    let said = t
        .script(
            "for place in / /etc /root; do if touch $place/x 2>/dev/null; then exit 1; fi; done
             touch /scratch/x /dev/shm/x
             stat -c %a /scratch
             df -m /scratch | awk 'NR == 2 { print $2 }'
             grep ' /scratch ' /proc/mounts | grep -o noexec
             cat /etc/hostname",
        )
        .flags([
            "--read-only",
            "-h",
            "box",
            "--tmpfs",
            "/scratch:size=8m,mode=1770,noexec",
        ])
        .done()?
        .finished();
    assert_eq!(said, "1770\n8\nnoexec\nbox\n");
    Ok(())
}

fn ulimit(t: &Context) -> Result<()> {
    let said = t
        .script("ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc")
        .flags(["--ulimit", "nofile=100:200", "--ulimit", "core=0"])
        .done()?
        .finished();
    assert_eq!(said, "100\n200\n0\n0\n");
    Ok(())
}

fn label(t: &Context) -> Result<()> {
    let id = t.file("id");
    t.run(["true"])
        .flags([
            "--name",
            "web",
            "-l",
            "tier=front",
            "--label",
            "bare",
            "--cidfile",
        ])
        .flags([&id])
        .done()?
        .status(0);
    let done = t.vch(["inspect", "web"]).done()?;
    done.status(0);
    let all: serde_json::Value = serde_json::from_slice(&done.out)?;
    let text = all.to_string();
    let id = std::fs::read_to_string(&id)?;
    assert_eq!(id.len(), 64, "{id:?}");
    for wanted in [r#""tier":"front""#, r#""bare":"""#, &id] {
        assert!(text.contains(wanted), "no {wanted} in {text}");
    }
    t.vch(["ls", "-q"]).done()?.status(0).stdout("web\n");
    t.vch(["rm", &id[..12]]).done()?.status(0);
    t.vch(["ls", "-q"]).done()?.status(0).stdout("");
    Ok(())
}

fn name(t: &Context) -> Result<()> {
    let mut first = t
        .run(["sh", "-c", "echo up; cat"])
        .flags(["-i", "--name", "web"])
        .stdin_open()
        .spawn()?;
    first.expect("up\n");
    t.run(["true"])
        .flags(["--name", "web"])
        .done()?
        .status(125)
        .says(&["the container name \"web\" is already in use"]);
    t.vch(["rm", "web"]).done()?.status(125).says(&["web"]);
    first.write(b"still here\n")?;
    first.wait()?.status(0).stdout("up\nstill here\n");
    // An ended container still has its name.
    t.run(["true"])
        .flags(["--name", "web"])
        .done()?
        .status(125)
        .says(&["is already in use"]);
    t.vch(["rm", "web"]).done()?.status(0);
    t.run(["true"]).flags(["--name", "web"]).done()?.status(0);
    Ok(())
}

fn rm(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "echo x >/x; exit 4"])
        .flags(["--rm"])
        .done()?
        .status(4);
    t.run(["no-such-program"])
        .flags(["--rm"])
        .done()?
        .status(127);
    let left: Vec<_> = std::fs::read_dir(t.state().join("runs"))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    assert!(left.is_empty(), "left behind: {left:?}");
    t.vch(["ls", "-q"]).done()?.status(0).stdout("");
    Ok(())
}
