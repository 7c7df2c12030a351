//! What only a VCH on vSphere can get wrong.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::{Context, skip};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-vsphere",
        "pyVmomi reads back the machine that the driver made",
        read_back,
    )
    .only_on_vsphere()
    .guests(2),
    Case::new(
        "docker-vsphere",
        "containers that were told to boot do, without a template",
        booted,
    )
    .only_on_vsphere(),
    Case::new(
        "docker-vsphere",
        "forks of one template share nothing, and one that was stopped is forked again",
        forked,
    )
    .only_on_vsphere()
    .guests(4)
    .minutes(5),
    Case::new(
        "docker-vsphere",
        "a controller that was killed goes on with forks",
        taken_over,
    )
    .only_on_vsphere()
    .guests(3)
    .minutes(5),
    Case::new(
        "docker-vsphere",
        "a published port leads to the container's own address, also by the controller that comes after",
        published,
    )
    .only_on_vsphere()
    .guests(2),
];

fn published(t: &Context) -> Result<()> {
    let docker = Docker::serve_published(t)?;
    let words = ["run", "-d", "--name", "web", "--stop-signal", "KILL"];
    let words = [&words[..], &["-p", "127.0.0.1::80", IMAGE]].concat();
    let serve = ["sh", "-c", "echo from the VM > /page; exec httpd -f -h /"];
    docker.ok([&words[..], &serve].concat())?;
    let shown = docker.ok(["port", "web", "80"])?;
    let ask = || -> Result<String> {
        let mut client = TcpStream::connect(&shown)?;
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        client.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    };
    // httpd may be a moment behind the address; then it refuses, and the relay closes.
    docker.ok([
        "exec",
        "web",
        "sh",
        "-c",
        "until wget -qO- localhost/page; do :; done",
    ])?;
    let answer = ask()?;
    assert!(answer.ends_with("from the VM\n"), "{answer:?}");
    docker.kill_serving()?;
    assert!(TcpStream::connect(&shown).is_err(), "nobody relays");
    docker.start_serving()?;
    let answer = ask()?;
    assert!(answer.ends_with("from the VM\n"), "{answer:?}");
    docker.ok(["stop", "web"])?;
    assert!(TcpStream::connect(&shown).is_err(), "it is off");
    docker.end()
}

/// What a file in a container says.
fn cat(docker: &Docker, container: &str, file: &str) -> Result<String> {
    docker.ok(["exec", container, "cat", file])
}

/// What pyVmomi sees of a container's machine.
fn seen(t: &Context, docker: &Docker, container: &str) -> Result<Value> {
    let Some(python) = std::env::var_os("PYVMOMI") else {
        return skip("PYVMOMI does not name a python that has pyVmomi");
    };
    // What the guest says that it is, is what it is to the server.
    let uuid = cat(docker, container, "/sys/class/dmi/id/product_uuid")?;
    let script = "qemu-tests/vsphere-simulator/read_back.py";
    let seen = std::process::Command::new(python)
        .arg(t.environment().source().join(script))
        .args(docker.server_and_user().context("no vSphere here")?)
        .arg(t.file("password"))
        .arg(&uuid)
        .output()?;
    let said = String::from_utf8_lossy(&seen.stderr);
    assert!(seen.status.success(), "{said}");
    Ok(serde_json::from_slice(&seen.stdout)?)
}

/// The template that a container's machine says it was forked from.
#[track_caller]
fn template_of(seen: &Value) -> String {
    let template = &seen["began"]["forked"]["template"];
    let template = template.as_str();
    template
        .unwrap_or_else(|| panic!("it began so: {}", seen["began"]))
        .to_owned()
}

fn booted(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--boot", "iso"])?;
    docker.lasting("booted", &[])?;
    let seen = seen(t, &docker, "booted")?;
    assert_eq!(
        (&seen["began"], &seen["templates"]),
        (&json!("booted"), &json!([]))
    );
    let services: Vec<_> = seen["serial"].as_array().into_iter().flatten().collect();
    assert!(
        services
            .iter()
            .all(|port| port[1] == "console" || port[1] == "channel")
    );
    docker.end()
}

/// What no two machines may share, as processes in the container read it.
fn identity(docker: &Docker, container: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in [
        "/proc/sys/kernel/random/boot_id",
        "/etc/machine-id",
        "/etc/hostname",
        "/sys/class/net/eth0/address",
        "/sys/class/dmi/id/product_uuid",
    ] {
        all.push(cat(docker, container, file)?);
    }
    all.push(docker.ok(["exec", container, "hostname"])?);
    let random = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'";
    all.push(docker.ok(["exec", container, "sh", "-c", random])?);
    Ok(all)
}

fn forked(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let drawn = "head -c 32 /dev/urandom | od -An -tx1 > /drawn; sleep 100000";
    let (mut identities, mut keys, mut templates) = (Vec::new(), Vec::new(), Vec::new());
    let names = ["one", "two", "three"];
    for name in names {
        docker.detached(&["--name", name, "--stop-signal", "KILL"], drawn)?;
        let mut own = identity(&docker, name)?;
        // The first random bytes that a process of it was given.
        own.push(cat(&docker, name, "/drawn")?);
        identities.push(own);
        let seen = seen(t, &docker, name)?;
        templates.push(template_of(&seen));
        keys.push([seen["key"].to_string(), seen["identity"].to_string()]);
        let ours = seen["templates"].as_array().context("no templates")?;
        assert_eq!(ours.len(), 1, "{seen}");
        assert_eq!(ours[0][1], "poweredOn");
        assert_eq!(ours[0][2], "0".repeat(64), "a template has no secret");
    }
    templates.dedup();
    assert_eq!(templates.len(), 1, "one template: {templates:?}");
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        for (mine, its) in identities[first].iter().zip(&identities[second]) {
            assert!(!mine.is_empty() && mine != its, "{mine:?} is another's too");
        }
        for (mine, its) in keys[first].iter().zip(&keys[second]) {
            assert_ne!(mine, its);
        }
    }
    // No other than what the endpoint says.
    let mac = "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}";
    assert_eq!(identities[0][3], docker.inspect("one", mac)?);
    assert_eq!(
        identities[0][2],
        docker.inspect("one", "{{.Config.Hostname}}")?
    );
    docker.ok(["exec", "one", "sh", "-c", "ip route | grep -q ^default"])?;

    docker.ok(["exec", "one", "sh", "-c", "echo kept > /kept; sync"])?;
    docker.ok(["stop", "one"])?;
    // A helper reads what is off; it is forked as well.
    docker.ok(["cp", "one:/kept", "kept-copy"])?;
    docker.ok(["start", "one"])?;
    assert_eq!(cat(&docker, "one", "/kept")?, "kept");
    let again = identity(&docker, "one")?;
    assert_eq!(again[1..6], identities[0][1..6], "it is the same container");
    assert_ne!(again[0], identities[0][0], "of another start");
    assert_ne!(again[6], identities[0][6]);
    let seen = seen(t, &docker, "one")?;
    assert_eq!(template_of(&seen), templates[0], "the template lives on");
    assert_eq!(seen["key"].to_string(), keys[0][0]);
    assert_ne!(seen["identity"].to_string(), keys[0][1]);
    for name in ["two", "three"] {
        docker.ok(["exec", name, "true"])?;
    }
    docker.end()
}

fn taken_over(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("fork", &[])?;
    let before = identity(&docker, "fork")?;
    docker.kill_serving()?;
    docker.start_serving()?;
    let after = identity(&docker, "fork")?;
    assert_eq!(
        before[..6],
        after[..6],
        "it is the same run of the same machine"
    );
    docker.lasting("later", &[])?;
    let (first, second) = (seen(t, &docker, "fork")?, seen(t, &docker, "later")?);
    assert_eq!(
        template_of(&first),
        template_of(&second),
        "a template outlives its controller"
    );
    assert_eq!(second["began"]["forked"]["made"], json!(false));
    docker.end()
}

fn read_back(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.lasting("seen", &["-m", "192m", "--cpus", "2"])?;
    let uuid = cat(&docker, "seen", "/sys/class/dmi/id/product_uuid")?;
    let seen = seen(t, &docker, "seen")?;
    for (what, wanted) in [
        ("pool", json!("default")),
        ("folder", json!("default")),
        ("power", json!("poweredOn")),
        ("memory_mb", json!(192)),
        ("cpus", json!(2)),
        ("hot_add", json!([true, true])),
        ("disk_controller", json!("ParaVirtualSCSIController")),
        ("disk_parents", json!(1)),
    ] {
        assert_eq!(seen[what], wanted, "{what} in {seen}");
    }
    // The server chose the other one: it is a fork.
    assert_eq!(seen["uuids"][0], json!(uuid));
    template_of(&seen);
    let name = seen["name"].as_str().unwrap_or_default();
    assert!(name.contains(&id[..12]), "{name}");
    let image = docker.ok(["image", "inspect", "--format", "{{.Id}}", IMAGE])?;
    let digest = image.trim_start_matches("sha256:");
    assert_eq!(
        seen["image"],
        json!(format!("[LocalDS_0] default/images/{digest}.vmdk"))
    );
    let iso = seen["cdrom"][0].as_str().unwrap_or_default();
    assert!(
        iso.starts_with("[LocalDS_0] default/boot/") && iso.ends_with(".iso"),
        "{seen}"
    );
    let mac = docker.inspect(
        "seen",
        "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}",
    )?;
    assert_eq!(
        seen["vnics"],
        json!([["VirtualVmxnet3", mac, "VM Network"]])
    );
    let ports = seen["serial"].as_array().context("no serial ports")?;
    let services: Vec<_> = ports.iter().map(|port| port[1].clone()).collect();
    let named = ["console", "channel"].map(|service| json!(format!("{service}/{uuid}")));
    assert_eq!(services, named, "{seen}");
    for port in ports {
        let proxy = port[2].as_str().unwrap_or_default();
        assert!(port[0] == "client" && proxy.starts_with("telnet://127.0.0.1:"));
    }
    let options = seen["options"].to_string();
    for key in ["guestinfo.tether.key", "monitor_control.restrict_backdoor"] {
        assert!(options.contains(key), "{options}");
    }
    docker.end()
}
