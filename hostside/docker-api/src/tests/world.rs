//! An endpoint on the in-process fake.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use hypervisor::fake::Host;
use portlayer::image::import::Options;
use portlayer::image::progress::Silent;
use portlayer::image::reference::Source;
use portlayer::image::store::Store;
use portlayer::spec::{Cpus, Memory};
use portlayer::{Boot, ChannelKind, Config, Hardware, Limits, PortLayer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::engine::{Engine, Vch};
use crate::hijack::{Peer, PeerKind};
use crate::router::Endpoint;

/// An endpoint with the image `test`, whose programs are the fake's.
pub struct World {
    pub endpoint: Endpoint,
    pub end: watch::Sender<bool>,
    _directory: TempDir,
}

/// Longer than anything takes that does not hang.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

fn root(directory: &Path) -> Source {
    let root = directory.join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    Source::Directory(root)
}

impl World {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = Store::open(&directory.path().join("images")).unwrap();
        let name = "test".parse().unwrap();
        images
            .import(
                &root(directory.path()),
                Some(&name),
                &Options::default(),
                &Silent,
            )
            .unwrap();
        let port_layer = PortLayer::open(Config {
            network: portlayer::DefaultNetwork::default(),
            state: directory.path().join("vch"),
            hypervisor: Arc::new(Host::default().open()),
            images,
            boot: Boot::Kernel {
                kernel: "bzImage".into(),
                initramfs: "initramfs.cpio".into(),
                append: String::new(),
            },
            start: portlayer::Start::Boot,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            limits: Limits {
                memory: Memory::from_mib(4096).unwrap(),
                cpus: Cpus::new(4).unwrap(),
                default_memory: Memory::from_mib(64).unwrap(),
                default_cpus: Cpus::ONE,
            },
        });
        let vch = Vch {
            name: "trial".into(),
            id: "trial-id".into(),
            state: directory.path().to_owned(),
            version: "1".into(),
        };
        let (end, ending) = watch::channel(false);
        let engine = Engine::new(soon(port_layer).await.unwrap(), vch, ending);
        Self {
            endpoint: Endpoint::new(engine),
            end,
            _directory: directory,
        }
    }

    /// One request; its answer with a body that is still to come.
    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Response {
        let request = Request::builder().method(method).uri(path);
        let request = match body {
            Some(body) => {
                let text = body.to_string();
                request
                    .header("content-type", "application/json")
                    .header("content-length", text.len())
                    .body(Body::from(text))
            }
            None => request.body(Body::empty()),
        };
        soon(self.endpoint.answer(request.unwrap())).await
    }

    /// One request; its answer's status and body.
    pub async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
        let response = self.send(method, path, body).await;
        let status = response.status().as_u16();
        let bytes = soon(response.into_body().collect()).await.unwrap();
        let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
        (status, text)
    }

    /// One request whose answer is JSON.
    pub async fn json(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, text) = self.ask(method, path, body).await;
        let value = serde_json::from_str(&text).unwrap_or(Value::Null);
        (status, value)
    }

    /// A container that runs this; its name is `name`.
    pub async fn create(&self, name: &str, command: &[&str], more: Value) -> String {
        let mut config = json!({ "Image": "test", "Cmd": command });
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        let path = format!("/containers/create?name={name}");
        let (status, answer) = self.json("POST", &path, Some(config)).await;
        assert_eq!(status, 201, "{answer}");
        answer["Id"].as_str().unwrap().to_owned()
    }

    /// The same, running.
    pub async fn run(&self, name: &str, command: &[&str]) -> String {
        let id = self.create(name, command, json!({})).await;
        let (status, text) = self
            .ask("POST", &format!("/containers/{name}/start"), None)
            .await;
        assert_eq!(status, 204, "{text}");
        id
    }

    /// A connection to the endpoint, as a client has it.
    pub fn connect(&self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        let peer = Peer::of(&near, PeerKind::Unix).unwrap();
        tokio::spawn(crate::serve::talk(near, Some(peer), self.endpoint.clone()));
        far
    }

    /// A connection that has become a process's streams. Returns the answer's head too.
    pub async fn hijack(&self, path: &str, body: &str) -> (UnixStream, String) {
        let mut stream = self.connect();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: vch\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(stream.read_u8()).await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap())
    }
}

/// All that is to come.
pub async fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

/// Frames taken apart: what went to standard output and to standard error.
pub fn unframe(mut bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let [channel, 0, 0, 0, a, b, c, d, after @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (data, after) = after.split_at(length);
        match channel {
            1 => stdout.extend_from_slice(data),
            2 => stderr.extend_from_slice(data),
            other => panic!("a frame of stream {other}"),
        }
        bytes = after;
    }
    assert!(bytes.is_empty(), "half a frame: {bytes:?}");
    (stdout, stderr)
}

pub const OK: u16 = StatusCode::OK.as_u16();
