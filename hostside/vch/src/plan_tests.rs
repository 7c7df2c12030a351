//! What is run, given what was written.

use crate::args::RunArgs;
use crate::plan::{self, ImageConfig, UserModeNetwork};
use std::net::Ipv4Addr;
use tether_wire::message::{HostsEntry, MacAddress, PidNamespace, Role, Stdio, TerminalSize, User};

const SIZE: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};
const NETWORK: UserModeNetwork = UserModeNetwork {
    guest: Ipv4Addr::new(10, 0, 2, 15),
    prefix: 24,
    gateway: Ipv4Addr::new(10, 0, 2, 2),
    dns: Ipv4Addr::new(10, 0, 2, 3),
};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

fn parse(words: &[&str]) -> RunArgs {
    crate::cli::parse_run(words).unwrap()
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["default", "args"]),
        env: strings(&["PATH=/bin", "A=image"]),
        working_dir: "/work".to_owned(),
        user: "daemon".to_owned(),
        stop_signal: "SIGINT".to_owned(),
        labels: [("from".to_owned(), "image".to_owned())].into(),
    }
}

#[test]
fn entrypoint_and_command_merge_as_docker_merges_them() {
    let mut no_entrypoint = image();
    no_entrypoint.entrypoint.clear();
    type Case<'a> = (&'a [&'a str], &'a ImageConfig, Option<&'a [&'a str]>);
    let cases: &[Case<'_>] = &[
        (&["img"], &image(), Some(&["/entry", "default", "args"])),
        (&["img", "x"], &image(), Some(&["/entry", "x"])),
        (&["--entrypoint", "e", "img"], &image(), Some(&["e"])),
        (
            &["--entrypoint", "e", "img", "x"],
            &image(),
            Some(&["e", "x"]),
        ),
        (&["--entrypoint=", "img", "x"], &image(), Some(&["x"])),
        (&["--entrypoint=", "img"], &image(), None),
        (&["img"], &no_entrypoint, Some(&["default", "args"])),
        (&["img", "x", "-y"], &no_entrypoint, Some(&["x", "-y"])),
        (&["img"], &ImageConfig::default(), None),
    ];
    for (words, image, expected) in cases {
        let process = plan::process(&parse(words), image, "host", SIZE);
        assert_eq!(
            process.ok().map(|process| process.argv),
            expected.map(strings),
            "{words:?}"
        );
    }
}

#[test]
fn what_is_not_said_comes_from_the_image() {
    let process = plan::process(&parse(&["img"]), &image(), "host", SIZE).unwrap();
    assert_eq!(process.cwd, "/work");
    assert_eq!(process.user.user, "daemon");
    assert_eq!(
        process.env,
        strings(&["PATH=/bin", "A=image", "HOSTNAME=host"])
    );
    assert_eq!(process.stdio, Stdio::Pipes { stdin: false });
    assert_eq!(
        process.role,
        Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false
        }
    );
    assert_eq!(plan::stop(&parse(&["img"]), &image()).unwrap().signal, 2);
}

#[test]
fn what_is_said_replaces_the_images() {
    let args = parse(&[
        "-it",
        "-e",
        "A=mine",
        "-w",
        "/else",
        "-u",
        "1:2",
        "--group-add",
        "wheel",
        "--init",
        "--pid",
        "host",
        "--stop-signal",
        "KILL",
        "--stop-timeout",
        "3",
        "-l",
        "from=me",
        "-l",
        "bare",
        "img",
    ]);
    let process = plan::process(&args, &image(), "host", SIZE).unwrap();
    assert_eq!(process.cwd, "/else");
    assert_eq!(
        process.user,
        User {
            user: "1:2".to_owned(),
            groups: strings(&["wheel"])
        }
    );
    assert!(process.env.contains(&"A=mine".to_owned()));
    assert_eq!(
        process.stdio,
        Stdio::Terminal {
            size: SIZE,
            stdin: true
        }
    );
    assert_eq!(
        process.role,
        Role::Main {
            pid_namespace: PidNamespace::Machine,
            init: true
        }
    );
    let stop = plan::stop(&args, &image()).unwrap();
    assert_eq!((stop.signal, stop.grace_ms), (9, 3000));
    assert_eq!(plan::unread_grace_ms(&args), 3000);
    assert_eq!(plan::unread_grace_ms(&parse(&["img"])), 1000);
    let labels = plan::labels(&args, &image()).unwrap();
    assert_eq!(labels["from"], "me");
    assert_eq!(labels["bare"], "");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for words in [
        &["-w", "relative", "img"][..],
        &["-e", "=x", "img"],
        &["--pid", "container:x", "img"],
    ] {
        assert!(
            plan::process(&parse(words), &image(), "host", SIZE).is_err(),
            "{words:?}"
        );
    }
    for words in [
        &["--network", "none", "-p", "80", "img"][..],
        &["--network", "mine", "img"],
    ] {
        assert!(plan::has_network(&parse(words)).is_err(), "{words:?}");
    }
    for words in [&["--cpus", "0", "img"][..], &["--cpus=-1", "img"]] {
        assert!(plan::cpus(&parse(words)).is_err(), "{words:?}");
    }
    assert!(plan::hostname(&parse(&["-h", "a b", "img"]), "id").is_err());
}

#[test]
fn the_network_has_names_and_a_way_out() {
    let args = parse(&[
        "--add-host",
        "db:10.9.8.7",
        "--add-host",
        "up:host-gateway",
        "--dns-search",
        ".",
        "--dns-option",
        "ndots:2",
        "img",
    ]);
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let network = plan::network(&args, Some((mac, NETWORK))).unwrap();
    assert_eq!(network.interfaces.len(), 1);
    assert_eq!(
        network.dns.servers,
        ["10.0.2.3".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(network.dns.search.is_empty());
    assert_eq!(network.dns.options, strings(&["ndots:2"]));
    assert_eq!(
        network.hosts,
        [("10.9.8.7", "db"), ("10.0.2.2", "up")].map(|(address, name)| HostsEntry {
            address: address.parse().unwrap(),
            names: strings(&[name])
        })
    );
    assert!(plan::network(&args, None).is_err());
}

#[test]
fn a_fraction_of_a_processor_is_a_whole_one() {
    for (words, expected) in [
        (&["img"][..], 1),
        (&["--cpus", "0.5", "img"], 1),
        (&["--cpus", "1.5", "img"], 2),
        (&["--cpus", "4", "img"], 4),
    ] {
        assert_eq!(plan::cpus(&parse(words)).unwrap(), expected);
    }
}
