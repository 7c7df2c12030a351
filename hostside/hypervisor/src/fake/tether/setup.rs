//! What makes a simulated machine one container's: its names, its mounts, the
//! files of /etc that are the machine's own. The order is the real tether's.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tether_wire::files::MOUNT_POINT;
use tether_wire::message::{
    DiskId, Error, ErrorKind, Identity, InterfaceAddressing, Mount, MountSource, Network, Setup,
};

use super::Hardware;
use crate::DiskAccess;
use crate::fake::files::image::Purpose;
use crate::fake::files::mounts::{Credentials, Found, Mount as Mounted, Place, Source};
use crate::fake::files::tree::{Disk, Kind, Node, ROOT, Stamp, Tree};
use crate::fake::files::{Errno, describe};
use crate::fake::kernel::Kernel;
use crate::fake::lock;

type Result<T> = std::result::Result<T, Error>;

/// An `errno` as the wire carries it, with what failed.
pub fn system(kind: ErrorKind, what: impl std::fmt::Display, errno: Errno) -> Error {
    Error {
        kind,
        errno: u16::try_from(errno.raw_os_error()).unwrap_or(0),
        message: format!("{what}: {}", describe(errno)),
    }
}

fn kind_of(errno: Errno) -> ErrorKind {
    match errno {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::NOTDIR | Errno::INVAL | Errno::LOOP => ErrorKind::Invalid,
        _ => ErrorKind::System,
    }
}

/// Everything, in order.
///
/// # Errors
/// What failed, and why.
pub fn set_up(kernel: &mut Kernel, hardware: &Hardware, setup: &Setup) -> Result<()> {
    assume(kernel, &setup.identity)?;
    let (disk, access) = find_disk(hardware, &setup.root.disk, Purpose::Root)?;
    lock(&disk).recover();
    kernel.mounts.add(Mounted {
        disk,
        root: ROOT,
        on: None,
        read_only: access == DiskAccess::ReadOnly,
        source: Source::Disk,
        target: "/".into(),
    });
    mount_pseudo(kernel)?;
    for mount in &setup.mounts {
        mount_one(kernel, hardware, mount)?;
    }
    mount_files(kernel, &setup.identity)?;
    if setup.root.read_only
        && let Some(root) = kernel.mounts.get_mut(0)
    {
        root.read_only = true;
    }
    apply_network(kernel, &setup.network)
}

fn assume(kernel: &mut Kernel, identity: &Identity) -> Result<()> {
    kernel.set_clock(Duration::from_nanos(identity.unix_nanos));
    let name = &identity.hostname;
    if name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("the host name {name:?} is not possible");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    kernel.hostname.clone_from(name);
    kernel.domainname.clone_from(&identity.domainname);
    Ok(())
}

fn find_disk(hardware: &Hardware, wanted: &DiskId, purpose: Purpose) -> Result<(Disk, DiskAccess)> {
    let found = match wanted {
        DiskId::Serial(serial) => lock(&hardware.disks)
            .iter()
            .find(|disk| disk.serial.as_str() == serial)
            .cloned(),
        // No simulated file system has a label: the first disk is meant.
        DiskId::Label(_) => lock(&hardware.disks).first().cloned(),
    };
    match found {
        Some(disk) => Ok((hardware.store.open(&disk.source, purpose), disk.access)),
        None => {
            let which = match wanted {
                DiskId::Serial(serial) => format!("no disk with serial {serial} came"),
                DiskId::Label(label) => format!("no disk with label {label} came"),
            };
            Err(Error::new(ErrorKind::NotFound, which))
        }
    }
}

fn memory(kernel: &Kernel, limit: u64, mode: u32) -> Disk {
    Arc::new(Mutex::new(Tree::new(limit, mode, kernel.stamp())))
}

fn put(disk: &Disk, name: &str, node: Node) {
    let now = node.mtime;
    // A new tree, and names that differ.
    let _ = lock(disk).create(ROOT, name.as_bytes(), node, now);
}

fn mount_pseudo(kernel: &mut Kernel) -> Result<()> {
    let now = kernel.stamp();
    let proc = memory(kernel, u64::MAX, 0o555);
    mount_at(kernel, "/proc", proc, Source::Proc, true)?;
    let sys = memory(kernel, 0, 0o555);
    for name in ["block", "class", "devices", "fs", "kernel", "module"] {
        put(&sys, name, Node::directory(0o755, now));
    }
    mount_at(kernel, "/sys", sys, Source::Memory, true)?;
    let dev = memory(kernel, 64 << 20, 0o755);
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        put(
            &dev,
            name,
            Node::new(Kind::Character(major, minor), 0o666, now),
        );
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        put(
            &dev,
            name,
            Node::new(Kind::Symlink(target.into()), 0o777, now),
        );
    }
    for name in ["pts", "shm", "mqueue"] {
        put(&dev, name, Node::directory(0o755, now));
    }
    mount_at(kernel, "/dev", dev, Source::Memory, false)?;
    let pts = memory(kernel, 0, 0o755);
    for number in 0..64 {
        let node = Node::new(Kind::Character(136, number), 0o620, now);
        put(&pts, &number.to_string(), node);
    }
    mount_at(kernel, "/dev/pts", pts, Source::Memory, false)?;
    let shm = memory(kernel, 64 << 20, 0o1777);
    mount_at(kernel, "/dev/shm", shm, Source::Memory, false)
}

/// Mounts a file system on a directory, made where missing.
fn mount_at(
    kernel: &mut Kernel,
    target: &str,
    disk: Disk,
    source: Source,
    read_only: bool,
) -> Result<()> {
    let on = directory_at(kernel, target, true)?;
    kernel.mounts.add(Mounted {
        disk,
        root: ROOT,
        on: Some(on),
        read_only,
        source,
        target: target.into(),
    });
    Ok(())
}

/// A directory of the container, made with its parents (root's, 0755) where
/// missing, even below a read-only root.
///
/// # Errors
/// `Invalid` when something else is in the way.
pub fn make_directory(kernel: &mut Kernel, path: &str) -> Result<Place> {
    directory_at(kernel, path, false)
}

/// What is made for something to be mounted on is marked as such
/// ([`MOUNT_POINT`]).
fn directory_at(kernel: &mut Kernel, path: &str, marked: bool) -> Result<Place> {
    let directory = |now| Node::directory(0o755, now);
    let made = make(kernel, path, marked, directory).and_then(|place| {
        let directory = kernel.mounts.with(place, |node| Ok(node.is_directory()))?;
        directory.then_some(place).ok_or(Errno::NOTDIR)
    });
    made.map_err(|errno| {
        let what = format!("making the directory {path} of the container");
        system(kind_of(errno), what, errno)
    })
}

fn make(
    kernel: &mut Kernel,
    path: &str,
    marked: bool,
    node: impl Fn(Stamp) -> Node,
) -> std::result::Result<Place, Errno> {
    let root = kernel.mounts.root();
    let who = Credentials::default();
    let now = kernel.stamp();
    let mut so_far = String::new();
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut place = root;
    for (index, name) in names.iter().enumerate() {
        so_far += "/";
        so_far += name;
        // A link to nothing gets what it names: the walk says where that is.
        place = match kernel.mounts.walk(root, so_far.as_bytes(), &who, true)? {
            Found::There(place) => place,
            Found::Missing(directory, name) => {
                let last = index + 1 == names.len();
                let mut node = if last {
                    node(now)
                } else {
                    Node::directory(0o755, now)
                };
                if marked {
                    node.xattrs.insert(MOUNT_POINT.to_vec(), b"1".to_vec());
                }
                let mount = kernel.mounts.get(directory.mount)?;
                let inode = lock(&mount.disk).create(directory.inode, &name, node, now)?;
                Place {
                    mount: directory.mount,
                    inode,
                }
            }
        };
    }
    Ok(place)
}

/// The files of /etc that are the machine's: laid over the image's.
fn mount_files(kernel: &mut Kernel, identity: &Identity) -> Result<()> {
    let now = kernel.stamp();
    let etc = memory(kernel, 1 << 20, 0o755);
    let mut machine_id = String::new();
    for byte in identity.machine_id {
        let _ = write!(machine_id, "{byte:02x}");
    }
    for (name, text) in [
        ("hostname", format!("{}\n", identity.hostname)),
        ("hosts", String::new()),
        ("resolv.conf", String::new()),
        ("machine-id", machine_id + "\n"),
    ] {
        put(&etc, name, Node::file(text, 0o644, now));
        let target = format!("/etc/{name}");
        let on =
            make(kernel, &target, true, |now| Node::file([], 0o644, now)).map_err(|errno| {
                let what = format!("making the file {target} of the container");
                system(kind_of(errno), what, errno)
            })?;
        let root = lock(&etc).find(name.as_bytes()).unwrap_or(ROOT);
        kernel.mounts.add(Mounted {
            disk: etc.clone(),
            root,
            on: Some(on),
            read_only: false,
            source: Source::Memory,
            target,
        });
    }
    Ok(())
}

/// One mount of the setup, or one that came later.
///
/// # Errors
/// A target that is not absolute; a disk that did not come.
pub fn mount_one(kernel: &mut Kernel, hardware: &Hardware, mount: &Mount) -> Result<()> {
    let target = mount.target.as_str();
    if !target.starts_with('/') || target.contains('\0') {
        let message = format!("the path {target:?} is not absolute");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let (disk, source, read_only) = match &mount.source {
        MountSource::Tmpfs {
            size,
            mode,
            options,
        } => {
            let limit = if *size == 0 { kernel.memory / 2 } else { *size };
            let disk = memory(kernel, limit, mode & 0o7777);
            let closed = options.split(',').any(|option| option == "ro");
            (disk, Source::Memory, mount.read_only || closed)
        }
        MountSource::Disk { disk, populate } => {
            let (disk, access) = find_disk(hardware, disk, Purpose::Volume)?;
            if *populate {
                fill(kernel, &disk, target);
            }
            let read_only = mount.read_only || access == DiskAccess::ReadOnly;
            (disk, Source::Disk, read_only)
        }
    };
    mount_at(kernel, target, disk, source, read_only)
}

/// Copies what the image has at `target` into a volume that holds nothing.
fn fill(kernel: &Kernel, volume: &Disk, target: &str) {
    let empty = lock(volume)
        .list(ROOT)
        .is_ok_and(|entries| entries.iter().all(|(name, _)| name == b"lost+found"));
    let root = kernel.mounts.root();
    let who = Credentials::default();
    let Ok(from) = kernel.mounts.find(root, target.as_bytes(), &who, true) else {
        return;
    };
    let Ok(mount) = kernel.mounts.get(from.mount) else {
        return;
    };
    if !empty || Arc::ptr_eq(&mount.disk, volume) {
        return;
    }
    let source = lock(&mount.disk).clone();
    let mut to = lock(volume);
    let mut rest = vec![(from.inode, ROOT)];
    while let Some((from, into)) = rest.pop() {
        let Ok(node) = source.node(from) else {
            continue;
        };
        for (name, inode) in source.list(from).unwrap_or_default() {
            let Ok(child) = source.node(inode) else {
                continue;
            };
            let mut copy = child.clone();
            copy.opens = 0;
            if let Kind::Directory { entries, .. } = &mut copy.kind {
                entries.clear();
            }
            if let Ok(made) = to.create(into, &name, copy, node.mtime)
                && child.is_directory()
            {
                rest.push((inode, made));
            }
        }
        if let Ok(copy) = to.node_mut(into) {
            (copy.mode, copy.uid, copy.gid) = (node.mode, node.uid, node.gid);
            copy.mtime = node.mtime;
        }
    }
}

/// Writes /etc/hosts and /etc/resolv.conf as the real tether does.
///
/// # Errors
/// `Invalid` for a name that does not fit a line.
pub fn apply_network(kernel: &mut Kernel, network: &Network) -> Result<()> {
    let word = |text: &str| {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("{text:?} is no name"),
            ))
        }
    };
    let own: Vec<IpAddr> = network
        .interfaces
        .iter()
        .flat_map(|interface| match &interface.addressing {
            InterfaceAddressing::Static { addresses, .. } => {
                addresses.iter().map(|address| address.address).collect()
            }
            InterfaceAddressing::Dhcp => Vec::new(),
        })
        .collect();
    let mut hosts = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for address in own {
        let _ = write!(hosts, "{address}\t");
        if !kernel.domainname.is_empty() {
            let _ = write!(hosts, "{}.{} ", kernel.hostname, kernel.domainname);
        }
        let _ = writeln!(hosts, "{}", kernel.hostname);
    }
    for entry in &network.hosts {
        for name in &entry.names {
            word(name)?;
        }
        let _ = writeln!(hosts, "{}\t{}", entry.address, entry.names.join(" "));
    }
    let mut resolv = String::new();
    for server in &network.dns.servers {
        let _ = writeln!(resolv, "nameserver {server}");
    }
    for (keyword, words) in [
        ("search", &network.dns.search),
        ("options", &network.dns.options),
    ] {
        for text in words {
            word(text)?;
        }
        if !words.is_empty() {
            let _ = writeln!(resolv, "{keyword} {}", words.join(" "));
        }
    }
    let now = kernel.stamp();
    for (target, text) in [("/etc/hosts", hosts), ("/etc/resolv.conf", resolv)] {
        let Some(mount) = kernel.mounts.iter().find(|mount| mount.target == target) else {
            continue;
        };
        let mut tree = lock(&mount.disk);
        let root = mount.root;
        let written = tree
            .truncate(root, 0, now)
            .and_then(|()| tree.write(root, 0, text.as_bytes(), now));
        written.map_err(|errno| system(ErrorKind::System, format!("writing {target}"), errno))?;
    }
    Ok(())
}
