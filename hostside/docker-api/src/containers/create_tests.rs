use std::path::PathBuf;

use portlayer::image::config::{ImageConfig, ProcessConfig};
use portlayer::image::digest::Digest;
use serde_json::{Value, json};

use portlayer::spec::NetworkAttachment;

use super::*;

fn image() -> ImageRecord {
    ImageRecord {
        id: Digest::of(b"image"),
        names: Vec::new(),
        disk: PathBuf::new(),
        size: 0,
        stored: 0,
        files: 0,
        source: String::new(),
        imported: 0,
        config: ImageConfig {
            config: ProcessConfig {
                cmd: vec!["sh".into()],
                env: vec!["PATH=/bin".into()],
                exposed_ports: ["80/tcp".to_owned()].into(),
                ..ProcessConfig::default()
            },
            ..ImageConfig::default()
        },
    }
}

fn planned(request: Value) -> Result<(ContainerSpec, Vec<String>), ApiError> {
    plan(
        serde_json::from_value(request).unwrap(),
        &image(),
        crate::version::NEWEST,
    )
}

#[test]
fn a_container_is_what_was_asked_for() {
    let (spec, warnings) = planned(json!({
        "Image": "app", "User": "me:staff", "Tty": true, "OpenStdin": true, "StdinOnce": true,
        "Hostname": "box", "Domainname": "example", "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
        "StopTimeout": -1, "Labels": {"a": "1"},
        "HostConfig": {
            "Memory": 100 << 20, "NanoCpus": 2_000_000_000i64, "ReadonlyRootfs": true, "Init": true,
            "GroupAdd": ["audio"], "PidMode": "host", "ConsoleSize": [24, 80],
            "Dns": ["10.0.0.1"], "DnsSearch": ["example"], "DnsOptions": ["ndots:1"],
            "ExtraHosts": ["db:10.0.0.2", "gw:host-gateway", "six=[::1]", "raw:::2"],
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": -1}],
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1.5k", "max-file": "3"}},
            "PublishAllPorts": true,
        },
        "NetworkingConfig": {"EndpointsConfig": {"default": {"MacAddress": "02:00:00:00:00:01"}}},
    }))
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let process = &spec.process;
    assert_eq!(process.argv, ["sh"]);
    assert_eq!(process.user.user, "me:staff");
    assert_eq!(process.user.groups, ["audio"]);
    assert_eq!(
        process.stdio,
        Stdio::Terminal(TerminalSize {
            rows: 24,
            columns: 80
        })
    );
    assert_eq!(process.stdin, Stdin::Open);
    assert_eq!(
        process.limits,
        [ResourceLimit {
            resource: 7,
            soft: 10,
            hard: u64::MAX
        }]
    );
    assert_eq!(
        (spec.hostname.as_deref(), spec.domainname.as_str()),
        (Some("box"), "example")
    );
    assert_eq!(spec.memory.map(Memory::mib), Some(100));
    assert_eq!(spec.cpus.map(Cpus::count), Some(2));
    assert_eq!(spec.root_access, Access::ReadOnly);
    assert_eq!(spec.pid_namespace, PidNamespace::Machine);
    assert!(spec.init);
    assert_eq!((spec.stop.signal, spec.stop.grace), (3, None));
    assert_eq!(spec.restart, RestartPolicy::OnFailure(NonZeroU32::new(3)));
    assert_eq!(
        spec.log,
        LogSpec::JsonFile {
            max_size: Some(1536),
            max_files: NonZeroU32::new(3).unwrap()
        }
    );
    let hosts: Vec<(String, Option<String>)> = spec
        .network
        .hosts
        .iter()
        .map(|host| (host.name.clone(), host.address.map(|ip| ip.to_string())))
        .collect();
    let host = |name: &str, ip: Option<&str>| (name.to_owned(), ip.map(str::to_owned));
    assert_eq!(
        hosts,
        [
            host("db", Some("10.0.0.2")),
            host("gw", None),
            host("six", Some("::1")),
            host("raw", Some("::2"))
        ]
    );
    let NetworkAttachment::Default { mac, published } = &spec.network.attachment else {
        panic!("it has no network");
    };
    assert_eq!(mac.map(String::from).as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(published.len(), 1);
    let written = Written::of(&spec);
    assert_eq!(written.config.exposed_ports.len(), 1);
    assert_eq!(written.host_config.network_mode, "bridge");
    assert_eq!(written.host_config.shm_size, SHM_SIZE);
}

/// Moby's `attach` closes the input after its client has gone where it is to be used once, unless it is
/// a terminal (daemon/container/stream/attach.go).
#[test]
fn input_that_is_used_once_ends_with_its_client_unless_it_is_a_terminal() {
    let cases = [
        (false, false, true, Stdin::Closed),
        (false, true, false, Stdin::Open),
        (false, true, true, Stdin::Once),
        (true, true, false, Stdin::Open),
        (true, true, true, Stdin::Open),
    ];
    for (tty, open, once, expected) in cases {
        let request = json!({"Image": "app", "Tty": tty, "OpenStdin": open, "StdinOnce": once});
        let (spec, _) = planned(request).unwrap();
        assert_eq!(spec.process.stdin, expected, "{tty} {open} {once}");
    }
}

#[test]
fn what_is_not_said_is_docker_s_default() {
    let (spec, warnings) = planned(json!({"Image": "app"})).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(spec.process.stdio, Stdio::Pipes);
    assert_eq!(spec.process.stdin, Stdin::Closed);
    assert_eq!(spec.process.cwd, "/");
    assert_eq!(spec.process.env, ["PATH=/bin"]);
    assert_eq!(
        (spec.stop.signal, spec.stop.grace),
        (15, Some(Duration::from_secs(10)))
    );
    assert_eq!((spec.memory, spec.cpus), (None, None));
    assert_eq!(spec.restart, RestartPolicy::No);
    assert_eq!(spec.at_end, AtEnd::Keep);
    assert_eq!(
        spec.log,
        LogSpec::JsonFile {
            max_size: None,
            max_files: NonZeroU32::MIN
        }
    );
    assert!(spec.mounts.is_empty() && spec.health.is_none() && spec.hostname.is_none());
    let (spec, _) = planned(json!({"Image": "app", "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "none"}}})).unwrap();
    assert_eq!(spec.network.attachment, NetworkAttachment::None);
    assert_eq!(spec.log, LogSpec::None);
}

#[test]
fn cpus_are_whole_ones() {
    let cases = [
        (json!({"NanoCpus": 500_000_000}), Ok((Some(1), 1))),
        (json!({"NanoCpus": 3_000_000_000i64}), Ok((Some(3), 0))),
        (json!({"CpuQuota": 150_000}), Ok((Some(2), 1))),
        (
            json!({"CpuQuota": 100_000, "CpuPeriod": 50_000}),
            Ok((Some(2), 0)),
        ),
        (json!({"CpuCount": 4}), Ok((Some(4), 0))),
        (json!({"CpuQuota": -1}), Ok((None, 0))),
        (json!({}), Ok((None, 0))),
        (json!({"NanoCpus": -1}), Err(())),
        (json!({"NanoCpus": 1, "CpuQuota": 1}), Err(())),
        (json!({"CpuCount": 255}), Err(())),
    ];
    for (given, expected) in cases {
        let shown = given.to_string();
        let mut warnings = Vec::new();
        let found = cpus(&serde_json::from_value(given).unwrap(), &mut warnings);
        let found = found
            .map(|cpus| (cpus.map(Cpus::count), warnings.len()))
            .map_err(|_| ());
        assert_eq!(found, expected, "{shown}");
    }
}

#[test]
fn what_means_nothing_to_a_vm_is_accepted_with_a_warning() {
    let cases = [
        json!({"Privileged": true}),
        json!({"CapAdd": ["NET_ADMIN"]}),
        json!({"CapDrop": "ALL"}),
        json!({"SecurityOpt": ["seccomp=unconfined"]}),
        json!({"IpcMode": "host"}),
        json!({"CpuShares": 512}),
        json!({"PidsLimit": 100}),
        json!({"MemoryReservation": 1 << 20}),
    ];
    for host_config in cases {
        let shown = host_config.to_string();
        let (_, warnings) = planned(json!({"Image": "app", "HostConfig": host_config})).unwrap();
        assert_eq!(warnings.len(), 1, "{shown}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_docker_s_status() {
    let cases = [
        (
            json!({"Binds": ["/etc:/etc"]}),
            501,
            "directory of the host",
        ),
        (
            json!({"Devices": [{"PathOnHost": "/dev/kvm"}]}),
            501,
            "devices",
        ),
        (
            json!({"Sysctls": {"net.ipv4.ip_forward": "1"}}),
            501,
            "kernel parameters",
        ),
        (json!({"Links": ["a:b"]}), 501, "links"),
        (json!({"NetworkMode": "host"}), 501, "host's network"),
        (
            json!({"NetworkMode": "container:x"}),
            501,
            "container's network",
        ),
        (
            json!({"NetworkMode": "mine"}),
            404,
            "network mine not found",
        ),
        (json!({"PidMode": "container:x"}), 501, "pid namespace"),
        (
            json!({"Memory": 1 << 20}),
            400,
            "Minimum memory limit allowed is 32MB",
        ),
        (json!({"Memory": -5}), 400, "Minimum memory limit"),
        (
            json!({"Runtime": "runsc"}),
            400,
            "unknown or invalid runtime name: runsc",
        ),
        (
            json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}),
            400,
            "can't create 'AutoRemove'",
        ),
        (
            json!({"RestartPolicy": {"Name": "sometimes"}}),
            400,
            "unknown policy 'sometimes'",
        ),
        (
            json!({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 2}}),
            400,
            "maximum retry count",
        ),
        (
            json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -2}}),
            400,
            "cannot be negative",
        ),
        (
            json!({"LogConfig": {"Type": "syslog"}}),
            400,
            "no log driver named 'syslog'",
        ),
        (
            json!({"LogConfig": {"Config": {"max-size": "x"}}}),
            400,
            "max-size",
        ),
        (
            json!({"LogConfig": {"Config": {"max-file": "0"}}}),
            400,
            "max-file",
        ),
        (
            json!({"LogConfig": {"Config": {"max-file": "2"}}}),
            400,
            "max-size must be set",
        ),
        (
            json!({"LogConfig": {"Config": {"bogus": "1"}}}),
            400,
            "unknown log opt 'bogus'",
        ),
        (
            json!({"Ulimits": [{"Name": "bogus"}]}),
            400,
            "invalid ulimit type: bogus",
        ),
        (
            json!({"Ulimits": [{"Name": "core", "Soft": 2, "Hard": 1}]}),
            400,
            "ulimit soft limit",
        ),
        (
            json!({"ExtraHosts": ["db"]}),
            400,
            "bad format for add-host",
        ),
        (
            json!({"ExtraHosts": ["db:x"]}),
            400,
            "invalid IP address in add-host",
        ),
        (json!({"Dns": ["x"]}), 400, "invalid DNS address"),
        (
            json!({"PortBindings": {"x": []}}),
            400,
            "invalid port specification",
        ),
        (json!({"Tmpfs": {"rel": ""}}), 400, "must be absolute"),
        (json!({"ShmSize": -1}), 400, "SHM size"),
    ];
    for (host_config, status, words) in cases {
        let shown = host_config.to_string();
        let error = planned(json!({"Image": "app", "HostConfig": host_config})).unwrap_err();
        assert_eq!(error.status.as_u16(), status, "{shown}: {}", error.message);
        assert!(error.message.contains(words), "{shown}: {}", error.message);
    }
    let error = planned(json!({"Image": "app", "Hostname": "a b"})).unwrap_err();
    assert_eq!(error.message, "invalid hostname format: a b");
}

#[test]
fn older_clients_remove_containers_themselves() {
    let request = json!({"Image": "app", "HostConfig": {"AutoRemove": true, "ConsoleSize": [1, 2]}, "Tty": true});
    let plan = |version| {
        plan(
            serde_json::from_value(request.clone()).unwrap(),
            &image(),
            version,
        )
        .unwrap()
        .0
    };
    let old = plan(ApiVersion::new(1, 24));
    assert_eq!(old.at_end, AtEnd::Keep);
    assert_eq!(
        old.process.stdio,
        Stdio::Terminal(TerminalSize {
            rows: 0,
            columns: 0
        })
    );
    assert_eq!(plan(ApiVersion::new(1, 47)).at_end, AtEnd::Remove);
}
