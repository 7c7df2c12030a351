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
    .only_on_vsphere(),
    Case::new(
        "docker-vsphere",
        "a published port leads to the container's own address, also by the controller that comes after",
        published,
    )
    .only_on_vsphere(),
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

fn read_back(t: &Context) -> Result<()> {
    let Some(python) = std::env::var_os("PYVMOMI") else {
        return skip("PYVMOMI does not name a python that has pyVmomi");
    };
    let docker = Docker::serve(t)?;
    let id = docker.lasting("seen", &["-m", "192m", "--cpus", "2"])?;
    // What the guest says that it is, is what it is to the server.
    let uuid = docker.ok(["exec", "seen", "cat", "/sys/class/dmi/id/product_uuid"])?;
    let script = "qemu-tests/vsphere-simulator/read_back.py";
    let seen = std::process::Command::new(python)
        .arg(t.environment().source().join(script))
        .args(docker.server_and_user().context("no vSphere here")?)
        .arg(t.file("password"))
        .arg(&uuid)
        .output()?;
    let said = String::from_utf8_lossy(&seen.stderr);
    assert!(seen.status.success(), "{said}");
    let seen: Value = serde_json::from_slice(&seen.stdout)?;
    for (what, wanted) in [
        ("pool", json!("default")),
        ("folder", json!("default")),
        ("power", json!("poweredOn")),
        ("uuids", json!([uuid, uuid])),
        ("memory_mb", json!(192)),
        ("cpus", json!(2)),
        ("hot_add", json!([true, true])),
        ("disk_controller", json!("ParaVirtualSCSIController")),
        ("disk_parents", json!(1)),
    ] {
        assert_eq!(seen[what], wanted, "{what} in {seen}");
    }
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
    assert_eq!(services, [json!("console"), json!("channel")], "{seen}");
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
