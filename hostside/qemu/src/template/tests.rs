use hypervisor::{Cpus, DebuggerStart, Firmware, GuestDebugger, Start};

use super::*;
use record::Sealed;

type Change = fn(&mut MachineSpec);
type Damage = fn(&Path);

/// A place for templates on a tmpfs, and files to make them from.
struct Place {
    memory: tempfile::TempDir,
    files: tempfile::TempDir,
    options: Options,
}

impl Place {
    fn new() -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let files = tempfile::tempdir().unwrap();
        for name in ["qemu", "bzImage", "initramfs.cpio"] {
            fs::write(files.path().join(name), name).unwrap();
        }
        let options = Options {
            program: files.path().join("qemu"),
            templates: Some(memory.path().to_owned()),
            ..Options::default()
        };
        Self {
            memory,
            files,
            options,
        }
    }

    fn spec(&self) -> MachineSpec {
        MachineSpec {
            id: MachineId::random().unwrap(),
            name: "web".into(),
            cpus: Cpus::ONE,
            memory: hypervisor::Memory::MIN,
            boot: Boot::Kernel {
                kernel: self.files.path().join("bzImage"),
                initramfs: self.files.path().join("initramfs.cpio"),
                append: String::new(),
            },
            start: Start::Fork,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            disks: Vec::new(),
            nics: Vec::new(),
            debugger: None,
        }
    }

    fn templates(&self) -> Templates {
        Templates::open(self.memory.path()).unwrap()
    }

    fn id(&self, spec: &MachineSpec) -> TemplateId {
        Inputs::of(&model(spec).unwrap(), &self.options)
            .unwrap()
            .id()
    }

    /// Writes a template by hand, as [`Templates::make`] leaves one.
    fn write(&self, spec: &MachineSpec) -> TemplateId {
        let spec = model(spec).unwrap();
        let inputs = Inputs::of(&spec, &self.options).unwrap();
        let id = inputs.id();
        let home = self.memory.path().join(&id.0);
        fs::create_dir(&home).unwrap();
        let ram = File::create(home.join("ram")).unwrap();
        ram.set_len(spec.memory.bytes()).unwrap();
        fs::write(home.join("state"), "state").unwrap();
        fs::write(home.join("kernel"), "kernel").unwrap();
        let record = TemplateRecord {
            id: id.clone(),
            inputs,
            qemu: "7.2.0".into(),
            created: SystemTime::now(),
            took_ms: 1,
            ram: TemplateRecord::memory(&home.join("ram")).unwrap(),
            state: Sealed::of(b"state"),
            kernel: Sealed::of(b"kernel"),
            spec,
        };
        record.write(&home).unwrap();
        id
    }

    async fn look(&self, id: &TemplateId) -> Result<Template, Unusable> {
        let templates = self.templates();
        let lock = templates.lock(id, Lock::Shared).await.unwrap();
        templates.whole(id, lock, false)
    }
}

#[test]
fn what_is_every_machines_own_makes_no_other_template() {
    let place = Place::new();
    let id = place.id(&place.spec());
    let mut other = place.spec();
    other.name = "db".into();
    other.nics = vec![hypervisor::NicSpec {
        mac: hypervisor::MacAddress::random().unwrap(),
        attachment: hypervisor::Attachment::UserMode {
            published: Vec::new(),
        },
    }];
    assert_eq!(place.id(&other), id);
    assert!(is_id(&id.0), "{id}");
}

#[test]
fn every_changed_input_makes_another_template() {
    let mut place = Place::new();
    let id = place.id(&place.spec());
    let changes: [Change; 3] = [
        |spec| spec.cpus = Cpus::new(2).unwrap(),
        |spec| spec.memory = hypervisor::Memory::from_mib(64).unwrap(),
        |spec| {
            if let Boot::Kernel { append, .. } = &mut spec.boot {
                append.push_str("mitigations=off");
            }
        },
    ];
    let mut seen = vec![id];
    for change in changes {
        let mut spec = place.spec();
        change(&mut spec);
        seen.push(place.id(&spec));
    }
    place.options.hot_plug_slots = 2;
    seen.push(place.id(&place.spec()));
    place.options.accelerator = crate::Accelerator::Kvm;
    seen.push(place.id(&place.spec()));
    for name in ["qemu", "bzImage", "initramfs.cpio"] {
        // As long as before: its times tell.
        fs::write(place.files.path().join(name), name).unwrap();
        seen.push(place.id(&place.spec()));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "two of {all} changes made no difference");
}

#[test]
fn machines_that_are_not_forked_say_why() {
    let place = Place::new();
    let cases: [(Change, &str); 5] = [
        (
            |spec| {
                spec.boot = Boot::Iso {
                    iso: "tether.iso".into(),
                    firmware: Firmware::Bios,
                }
            },
            "ISO",
        ),
        (|spec| spec.hardware = Hardware::Vmware, "virtio hardware"),
        (|spec| spec.channel = ChannelKind::Serial, "virtio channel"),
        (|spec| spec.channel = ChannelKind::Vsock, "virtio channel"),
        (
            |spec| {
                spec.debugger = Some(GuestDebugger {
                    listen: ([127, 0, 0, 1], 1234).into(),
                    start: DebuggerStart::Run,
                })
            },
            "debugger",
        ),
    ];
    for (change, expected) in cases {
        let mut spec = place.spec();
        change(&mut spec);
        let said = model(&spec).unwrap_err().to_string();
        assert!(said.contains(expected), "{said:?} says no {expected:?}");
    }
}

#[tokio::test]
async fn a_template_whose_files_are_not_what_they_were_is_not_used() {
    let place = Place::new();
    let spec = place.spec();
    let id = place.write(&spec);
    assert!(place.look(&id).await.is_ok());
    let home = place.memory.path().join(&id.0);
    let damages: [(&str, Damage); 6] = [
        ("memory that was written to", |home| {
            use std::os::unix::fs::FileExt as _;
            let ram = OpenOptions::new().write(true).open(home.join("ram"));
            ram.unwrap().write_at(b"x", 4096).unwrap();
        }),
        ("memory that is too short", |home| {
            File::create(home.join("ram")).unwrap().set_len(1).unwrap();
        }),
        ("a state with another byte", |home| {
            fs::write(home.join("state"), "stafe").unwrap();
        }),
        ("a state that ends early", |home| {
            fs::write(home.join("state"), "stat").unwrap();
        }),
        ("no state", |home| {
            fs::remove_file(home.join("state")).unwrap()
        }),
        ("a record that ends early", |home| {
            let text = fs::read(home.join("template.json")).unwrap();
            fs::write(home.join("template.json"), &text[..text.len() / 2]).unwrap();
        }),
    ];
    for (what, damage) in damages {
        fs::remove_dir_all(&home).unwrap();
        assert_eq!(place.write(&spec), id);
        assert!(place.look(&id).await.is_ok(), "before {what}");
        damage(&home);
        let found = place.look(&id).await;
        assert!(matches!(found, Err(Unusable::Corrupt(_))), "{what} is used");
    }
    // Another's, under this one's name.
    let mut other = place.spec();
    other.memory = hypervisor::Memory::from_mib(64).unwrap();
    let other = place.write(&other);
    fs::remove_dir_all(&home).unwrap();
    fs::rename(place.memory.path().join(&other.0), &home).unwrap();
    assert!(matches!(place.look(&id).await, Err(Unusable::Corrupt(_))));
}

#[tokio::test]
async fn a_template_can_be_removed_while_it_is_forked() {
    use std::io::Read as _;
    let place = Place::new();
    let id = place.write(&place.spec());
    let Ok(mut template) = place.look(&id).await else {
        panic!("it is not whole");
    };
    let templates = place.templates();
    // Who removes it waits until the fork has what it needs.
    let removal = tokio::spawn({
        let (templates, id) = (templates.clone(), id.clone());
        async move { templates.remove(&id).await }
    });
    tokio::task::yield_now().await;
    assert!(!removal.is_finished());
    let mut state = template.state.try_clone().unwrap();
    template._lock = File::open("/dev/null").unwrap();
    removal.await.unwrap().unwrap();
    let mut text = String::new();
    state.read_to_string(&mut text).unwrap();
    assert_eq!(text, "state");
    assert!(matches!(
        templates.remove(&id).await,
        Err(Cause::NotFound { .. })
    ));
    assert_eq!(fs::read_dir(templates.directory()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_template_that_cannot_be_made_says_why_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let script = "#!/bin/sh\necho no such machine >&2\nexit 1\n";
    fs::write(&place.options.program, script).unwrap();
    fs::set_permissions(&place.options.program, fs::Permissions::from_mode(0o755)).unwrap();
    let templates = place.templates();
    // Left by a maker that was killed.
    let id = place.id(&place.spec());
    fs::create_dir(place.memory.path().join(format!("{NEW}{id}"))).unwrap();
    let failed = templates.make_ready(&place.spec(), &place.options).await;
    let cause = failed.unwrap_err();
    let said = cause.to_string();
    assert!(said.contains("no such machine"), "{cause:?}");
    let left: Vec<_> = fs::read_dir(templates.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [std::ffi::OsString::from(format!("{id}{LOCK}"))]);
}

#[tokio::test]
async fn a_file_system_that_is_too_small_is_refused_before_anything_is_made() {
    let place = Place::new();
    let mut spec = place.spec();
    spec.memory = hypervisor::Memory::from_mib(1 << 30).unwrap();
    let failed = place.templates().make_ready(&spec, &place.options).await;
    let said = failed.unwrap_err().to_string();
    assert!(said.contains("MiB are left"), "{said}");
}

#[test]
fn a_disk_is_no_place_for_templates() {
    let disk = Path::new(env!("CARGO_MANIFEST_DIR"));
    let refused = Templates::open(disk);
    // Sources on a tmpfs are possible.
    if let Err(cause) = refused {
        assert!(cause.to_string().contains("tmpfs"), "{cause}");
    }
}

#[test]
fn only_so_many_are_kept_and_the_unused_go_first() {
    let place = Place::new();
    let templates = place.templates();
    let mut ids = Vec::new();
    for number in 0..KEEP + 2 {
        let mut spec = place.spec();
        spec.memory = hypervisor::Memory::from_mib(32 + number as u64).unwrap();
        let id = place.write(&spec);
        let lock = File::create(templates.lock_file(&id)).unwrap();
        let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
        lock.set_modified(used).unwrap();
        ids.push(id);
    }
    // The longest unused is just being forked.
    let busy = File::open(templates.lock_file(&ids[0])).unwrap();
    busy.lock_shared().unwrap();
    templates.drop_oldest(&ids[KEEP + 1]);
    let left: Vec<_> = templates
        .list()
        .unwrap()
        .into_iter()
        .map(|template| template.record.id)
        .collect();
    assert_eq!(left.len(), KEEP + 1);
    assert!(left.contains(&ids[0]) && !left.contains(&ids[1]));
}
