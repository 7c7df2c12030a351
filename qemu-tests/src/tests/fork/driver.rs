//! The driver's own words for templates and their children.

use super::Templates;
use crate::harness::Context;
use crate::machine::block_on;
use anyhow::Result;
use hypervisor::{
    Boot, Cause, ChannelKey, ChannelKind, Cpus, Fork, ForkParent, Hardware, Hypervisor as _,
    MachineId, MachineSpec, Memory, PowerOff, PowerState, Start, Started,
};

/// What a child does not have from its template.
fn child(id: MachineId) -> Result<Fork> {
    Ok(Fork {
        id,
        name: "child".to_owned(),
        key: ChannelKey::random()?,
        metadata: [("of".to_owned(), "template".to_owned())].into(),
        disks: Vec::new(),
        nics: Vec::new(),
    })
}

pub(super) fn by_name(t: &Context) -> Result<()> {
    block_on(t, async {
        let options = qemu::Options {
            templates: Some(Templates::of(t).directory),
            ..qemu::Options::default()
        };
        let driver = qemu::Qemu::open(t.file("vm"), options).await?;
        assert!(driver.capabilities().fork);
        let boot_image = t.environment().boot_image();
        let spec = MachineSpec {
            id: MachineId::random()?,
            name: "model".to_owned(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(128)?,
            boot: Boot::Kernel {
                kernel: boot_image.join("bzImage"),
                initramfs: boot_image.join("initramfs.cpio"),
                append: String::new(),
            },
            start: Start::Boot,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            disks: Vec::new(),
            nics: Vec::new(),
            debugger: None,
        };
        let template = driver.make_template(&spec).await?;
        assert_eq!(driver.templates().await?, std::slice::from_ref(&template));
        let parent = ForkParent::Template(template.id.clone());

        let (one, two) = (MachineId::random()?, MachineId::random()?);
        let forked = driver.fork(&parent, vec![child(one)?, child(two)?]).await?;
        assert_eq!(forked, [one, two]);
        for id in forked {
            let machine = driver.inspect(&id).await?;
            assert_eq!(machine.power, PowerState::On);
            assert_eq!(machine.metadata["of"], "template");
            let began = Started::Forked {
                template: template.id.clone(),
                made: false,
            };
            assert_eq!(machine.began, Some(began));
            // Off and on again is another fork.
            driver.power_off(&id, PowerOff::Cut).await?;
            driver.power_on(&id).await?;
            assert_eq!(driver.inspect(&id).await?.power, PowerState::On);
        }

        // One that cannot be takes the others along, and leaves those that were there.
        let three = MachineId::random()?;
        let failed = driver.fork(&parent, vec![child(three)?, child(one)?]).await;
        let cause = failed.unwrap_err();
        assert!(
            matches!(cause.cause(), Cause::AlreadyExists { .. }),
            "{cause:?}"
        );
        assert_eq!(driver.list().await?.len(), 2);
        let live = ForkParent::Machine(one);
        let failed = driver.fork(&live, vec![child(three)?]).await;
        assert!(matches!(
            failed.unwrap_err().cause(),
            Cause::Unsupported { .. }
        ));

        // Who runs does not need its template any more.
        driver.remove_template(&template.id).await?;
        assert_eq!(driver.templates().await?, []);
        assert_eq!(driver.inspect(&two).await?.power, PowerState::On);
        let failed = driver.fork(&parent, vec![child(three)?]).await;
        assert!(matches!(
            failed.unwrap_err().cause(),
            Cause::NotFound { .. }
        ));
        for id in [one, two] {
            driver.destroy(&id).await?;
        }
        Ok(())
    })
}
