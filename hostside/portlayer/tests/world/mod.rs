//! A VCH on the in-process fake, for tests that read as scripts.
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::time::Duration;

use hypervisor::fake::Host;
use hypervisor::{Boot, ChannelKind, Cpus, Hardware, Memory};
use image::import::Options;
use image::progress::Silent;
use image::reference::Source;
use image::store::Store;
use portlayer::spec::{
    Access, AtEnd, ContainerSpec, ImageChoice, LogSpec, NetworkAttachment, NetworkSpec,
    PidNamespace, ProcessSpec, RestartPolicy, Stdin, Stdio, StopSpec, User,
};
use portlayer::{Config, ContainerId, Ended, Event, Limits, Output, PortLayer, WaitFor, Wanted};
use tempfile::TempDir;

/// A host with a VCH's state on it. Controllers come and go.
pub struct World {
    pub host: Host,
    pub directory: TempDir,
    pub image: ImageChoice,
    store: Store,
}

pub const ALL: Wanted = Wanted {
    stdout: true,
    stderr: true,
    stdin: true,
};

/// Runs until it is asked to stop: a process 1 that does not handle a signal ignores it.
pub const STOPS: [&str; 3] = [
    "sh",
    "-c",
    "trap 'exit 143' TERM; while true; do sleep 0.05; done",
];

/// Longer than anything takes that does not hang.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

impl World {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("directory");
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("file");
        let store = Store::open(&directory.path().join("images")).expect("store");
        let record = store
            .import(
                &Source::Directory(root),
                Some(&"test".parse().expect("name")),
                &Options::default(),
                &Silent,
            )
            .expect("image");
        Self {
            host: Host::default(),
            image: ImageChoice {
                id: record.id,
                reference: "test".to_owned(),
            },
            store,
            directory,
        }
    }

    pub fn config(&self) -> Config {
        Config {
            network: portlayer::DefaultNetwork::default(),
            state: self.directory.path().join("vch"),
            hypervisor: Arc::new(self.host.open()),
            images: self.store.clone(),
            boot: Boot::Kernel {
                kernel: "bzImage".into(),
                initramfs: "initramfs.cpio".into(),
                append: String::new(),
            },
            start: hypervisor::Start::Boot,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            limits: Limits {
                memory: Memory::from_mib(16 * 1024).expect("memory"),
                cpus: Cpus::new(4).expect("CPUs"),
                default_memory: Memory::from_mib(64).expect("memory"),
                default_cpus: Cpus::ONE,
            },
        }
    }

    /// A controller.
    pub async fn open(&self) -> PortLayer {
        soon(PortLayer::open(self.config()))
            .await
            .expect("port layer")
    }

    /// A container that runs this.
    pub fn spec(&self, argv: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: None,
            image: self.image.clone(),
            process: process(argv),
            pid_namespace: PidNamespace::Private,
            init: false,
            hostname: None,
            domainname: String::new(),
            memory: None,
            cpus: None,
            root_access: Access::ReadWrite,
            mounts: Vec::new(),
            network: NetworkSpec {
                attachment: NetworkAttachment::None,
                dns: Vec::new(),
                dns_search: Vec::new(),
                dns_options: Vec::new(),
                hosts: Vec::new(),
            },
            stop: StopSpec {
                signal: 15,
                grace: Some(Duration::from_secs(10)),
            },
            restart: RestartPolicy::No,
            at_end: AtEnd::Keep,
            health: None,
            log: LogSpec::JsonFile {
                max_size: None,
                max_files: 1.try_into().expect("one"),
            },
            labels: Default::default(),
            endpoint: serde_json::Value::Null,
        }
    }

    pub fn named(&self, name: &str, argv: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: Some(name.parse().expect("name")),
            ..self.spec(argv)
        }
    }

    /// Machines on the host.
    pub async fn machines(&self) -> usize {
        use hypervisor::Hypervisor as _;
        self.host.open().list().await.expect("list").len()
    }

    /// What lies in the state directory's containers.
    pub fn directories(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("vch/containers"))
            .expect("directory")
            .count()
    }
}

pub fn process(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: User::default(),
        stdio: Stdio::Pipes,
        stdin: Stdin::Closed,
        limits: Vec::new(),
    }
}

/// Made, started, attached to: what it wrote and how it ended.
pub async fn run(layer: &PortLayer, spec: ContainerSpec) -> (ContainerId, String, Ended) {
    let id = layer.create(spec).await.expect("create");
    let mut attached = layer.attach(&id, ALL, false).await.expect("attach");
    let waiting = {
        let layer = layer.clone();
        tokio::spawn(async move { layer.wait(&id, WaitFor::NextExit).await })
    };
    tokio::task::yield_now().await;
    layer.start(&id).await.expect("start");
    let mut text = String::new();
    while let Some(piece) = soon(attached.output.next()).await {
        if piece.output == Output::Stderr {
            text.push('!');
        }
        text.push_str(&String::from_utf8_lossy(&piece.data));
    }
    let ended = soon(waiting).await.expect("wait").expect("ended");
    (id, text, ended)
}

/// The names of what happened to a container so far.
pub async fn told(layer: &PortLayer, id: &ContainerId) -> Vec<String> {
    let now = std::time::SystemTime::now() + Duration::from_millis(1);
    let mut reader = layer.events(Some(std::time::SystemTime::UNIX_EPOCH), Some(now));
    let mut names = Vec::new();
    while let Some(event) = soon(reader.next()).await {
        if is_about(&event, id) {
            let text = format!("{:?}", event.action);
            names.push(text.split([' ', '{']).next().unwrap_or_default().to_owned());
        }
    }
    names
}

pub fn is_about(event: &Event, id: &ContainerId) -> bool {
    matches!(&event.subject, portlayer::Subject::Container { id: other, .. } if other == id)
}
