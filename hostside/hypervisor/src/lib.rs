//! What a machine is, and what can be asked of a hypervisor.
//!
//! This crate owns the [`Hypervisor`] trait, the types that cross it, and an
//! in-process fake. Drivers (`qemu`, `vsphere`) implement the trait; the port
//! layer holds an `Arc<dyn Hypervisor>` and never learns which one it has.
//!
//! ```text
//!             create                power_on
//!   (nothing) ------> Off(NeverStarted) ---> On <----> Suspended
//!                         ^                  |   suspend/resume
//!                         | power_on         | power_off, or by itself
//!                         +---- Off(cause) <-+
//!                                   | destroy (from any state)
//!                                   v
//!                               (nothing)
//! ```
//!
//! Three rules every driver keeps:
//!
//! * The hypervisor is the truth. A driver opened on the same place by a new
//!   process finds every machine, its power state, and for one that went off
//!   meanwhile the cause.
//! * A machine outlives the process that made it. Dropping a driver powers
//!   nothing off.
//! * Every operation can be cut short (its future dropped, its process killed)
//!   and leaves a machine that [`Hypervisor::reconcile`] finds and repairs.
//!
//! What is not here: containers, images, networks with names, retries. Those
//! are the port layer's.

#![forbid(unsafe_code)]

mod channel;
mod disk;
mod error;
mod event;
pub mod fake;
mod fork;
mod machine;
mod nic;
mod spec;
mod statistics;

pub use channel::{Carrier, Channel, ChannelIo, Claim};
pub use disk::{DiskAccess, DiskFormat, DiskSerial, DiskSource, DiskSpec};
pub use error::{Cause, Error, Result};
pub use event::{EventSender, Events, MachineEvent, Next, Notice};
pub use fork::{Bystander, Fork, ForkParent, Forked, HOLD, Template, TemplateId};
pub use machine::{
    Machine, MachineId, Metadata, MetadataChange, NotAMachineId, PowerState, Started, StopCause,
};
pub use nic::{Attachment, MacAddress, NicSpec, PortGroup, Protocol, PublishedPort, UserNetwork};
pub use spec::{
    Boot, ChannelKey, ChannelKind, Cpus, DebuggerStart, Firmware, GuestDebugger, Hardware,
    InvalidSpec, MachineSpec, Memory, Start,
};
pub use statistics::{
    Applied, BlockStatistics, Capabilities, NicStatistics, Reconfigure, Repair, Statistics,
};

use std::sync::Arc;

use async_trait::async_trait;

/// How hard [`Hypervisor::power_off`] pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerOff {
    /// Press the power button and return: whether and when the guest obeys is
    /// its own affair, and shows as an event.
    Ask,
    /// Cut the power. The machine is off when the call returns.
    Cut,
}

/// One hypervisor, or the part of one that belongs to a VCH.
///
/// All methods take `&self` and may be called at once from many tasks; calls
/// for one machine are serialised by the driver, calls for different machines
/// do not wait for each other.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// The driver's name as users write it: `qemu`, `vsphere`, `fake`.
    fn name(&self) -> &'static str;

    /// What this driver can do here, on this host, now.
    fn capabilities(&self) -> Capabilities;

    /// Registers a machine, powered off.
    ///
    /// `key` authenticates the machine's channel; the driver keeps it where
    /// only its owner reads it, and gives it back with every
    /// [`Channel`]. It appears in no listing. A power on may put another in
    /// its place: the channel's is the one that counts.
    ///
    /// # Errors
    ///
    /// [`Error::Create`]: the identity is taken, the specification asks for
    /// what the driver has not got, or the hypervisor refused.
    async fn create(
        &self,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> Result<MachineId>;

    /// Removes the machine and everything the driver made for it, powering it
    /// off first if it must. Disks named by the specification belong to the
    /// caller and stay.
    ///
    /// # Errors
    ///
    /// [`Error::Destroy`]; with [`Cause::NotFound`] there was nothing to do.
    async fn destroy(&self, id: &MachineId) -> Result<()>;

    /// Starts the machine. Returns when its virtual CPUs run; the guest is not
    /// up yet.
    ///
    /// # Errors
    ///
    /// [`Error::PowerOn`], with [`Cause::WrongState`] when it is already on.
    async fn power_on(&self, id: &MachineId) -> Result<()>;

    /// Turns the machine off, by request or by force. Already off is success.
    ///
    /// # Errors
    ///
    /// [`Error::PowerOff`].
    async fn power_off(&self, id: &MachineId, how: PowerOff) -> Result<()>;

    /// Stops the virtual CPUs, keeping the machine in memory. Already
    /// suspended is success.
    ///
    /// # Errors
    ///
    /// [`Error::Suspend`].
    async fn suspend(&self, id: &MachineId) -> Result<()>;

    /// Lets the virtual CPUs run again. Already running is success.
    ///
    /// # Errors
    ///
    /// [`Error::Resume`].
    async fn resume(&self, id: &MachineId) -> Result<()>;

    /// Changes CPUs or memory: at once where the driver can, else at the next
    /// power on, and the answer says which.
    ///
    /// # Errors
    ///
    /// [`Error::Reconfigure`].
    async fn reconfigure(&self, id: &MachineId, change: Reconfigure) -> Result<Applied>;

    /// Adds a disk, to the running machine if it runs.
    ///
    /// # Errors
    ///
    /// [`Error::AttachDisk`], with [`Cause::AlreadyExists`] when the serial is
    /// taken on this machine.
    async fn attach_disk(&self, id: &MachineId, disk: DiskSpec) -> Result<()>;

    /// Removes the disk with this serial. On a running machine it waits until
    /// the guest has let go.
    ///
    /// # Errors
    ///
    /// [`Error::DetachDisk`].
    async fn detach_disk(&self, id: &MachineId, serial: &DiskSerial) -> Result<()>;

    /// Sets or removes entries of the machine's metadata, all or none.
    ///
    /// # Errors
    ///
    /// [`Error::SetMetadata`].
    async fn set_metadata(&self, id: &MachineId, changes: Vec<MetadataChange>) -> Result<()>;

    /// One machine as the hypervisor sees it now.
    ///
    /// # Errors
    ///
    /// [`Error::Inspect`].
    async fn inspect(&self, id: &MachineId) -> Result<Machine>;

    /// Every machine of this VCH, by identity.
    ///
    /// # Errors
    ///
    /// [`Error::List`].
    async fn list(&self) -> Result<Vec<Machine>>;

    /// Processor, memory, disk and network use since power on.
    ///
    /// # Errors
    ///
    /// [`Error::Statistics`], with [`Cause::WrongState`] when it is off.
    async fn statistics(&self, id: &MachineId) -> Result<Statistics>;

    /// Connects to the machine's channel.
    ///
    /// May be called again at any time, by this process or a later one: the
    /// newest connection is the one that works. It does not wait for tether
    /// to be there; the link layer's hello does.
    ///
    /// # Errors
    ///
    /// [`Error::ConnectChannel`].
    async fn connect_channel(&self, id: &MachineId) -> Result<Channel>;

    /// The last part of the guest's console (kernel log), oldest byte first.
    /// Bounded by the driver; also there after the machine went off.
    ///
    /// # Errors
    ///
    /// [`Error::Console`].
    async fn console(&self, id: &MachineId) -> Result<Vec<u8>>;

    /// What the console says from power on, then as it comes, until the
    /// machine is off. A follower too slow loses the middle, never delays the
    /// guest.
    ///
    /// # Errors
    ///
    /// [`Error::Console`].
    async fn follow_console(&self, id: &MachineId) -> Result<tokio::sync::mpsc::Receiver<Vec<u8>>>;

    /// Everything that happens to any machine from now on, whoever did it.
    fn events(&self) -> Events;

    /// Freezes a running machine into a template, which takes its place: the
    /// machine is gone and its identity free.
    ///
    /// # Errors
    ///
    /// [`Error::Freeze`]; [`Cause::Unsupported`] where
    /// [`Capabilities::fork`] is false.
    async fn freeze(&self, id: &MachineId, template: TemplateId) -> Result<Template>;

    /// The templates there are. None where [`Capabilities::fork`] is false.
    ///
    /// # Errors
    ///
    /// [`Error::Template`].
    async fn templates(&self) -> Result<Vec<Template>> {
        Ok(Vec::new())
    }

    /// Sees to it that there is a template for machines like this one, as a
    /// power on of one with [`Start::Fork`] would. Its disks, vNICs, identity
    /// and name do not count.
    ///
    /// # Errors
    ///
    /// [`Error::Template`]; [`Cause::Unsupported`] where
    /// [`Capabilities::fork`] is false.
    async fn make_template(&self, _spec: &MachineSpec) -> Result<Template> {
        Err(Error::Template {
            source: Cause::Unsupported {
                driver: self.name(),
                what: "make a template".into(),
                why: "it does not fork; boot instead".into(),
            },
        })
    }

    /// Removes a template. Its children run on.
    ///
    /// # Errors
    ///
    /// [`Error::Template`], with [`Cause::NotFound`] when there is none.
    async fn remove_template(&self, _id: &TemplateId) -> Result<()> {
        Err(Error::Template {
            source: Cause::NotFound { what: "template" },
        })
    }

    /// Makes running machines out of a template or a running machine.
    ///
    /// # Errors
    ///
    /// [`Error::Fork`]; [`Cause::Unsupported`] where [`Capabilities::fork`]
    /// is false. None of the children is left when it fails.
    async fn fork(&self, parent: &ForkParent, children: Vec<Fork>) -> Result<Vec<MachineId>>;

    /// Makes running machines out of a running one, which goes on after a pause. `disks` are those that
    /// the parent goes on with, each in the place of the disk of the same serial; they, and the
    /// children's, are made by [`Bystander::branch`].
    ///
    /// The children run, and their processes stand still: each has a key of its own, and its vNICs are
    /// not connected before [`Hypervisor::connect_nics`].
    ///
    /// # Errors
    ///
    /// [`Error::Fork`]; [`Cause::Unsupported`] where such a machine cannot be forked. None of the
    /// children is left when it fails, and the parent runs on; whether on its new disks is in its
    /// specification.
    async fn fork_running(
        &self,
        parent: &MachineId,
        _disks: Vec<DiskSpec>,
        _children: Vec<Fork>,
        _bystander: Arc<dyn Bystander>,
    ) -> Result<Forked> {
        Err(Error::Fork {
            parent: ForkParent::Machine(*parent),
            source: Cause::Unsupported {
                driver: self.name(),
                what: "fork a running machine".into(),
                why: "it can only start machines from nothing".into(),
            },
        })
    }

    /// Connects the vNICs of a child of a running machine, once it has addresses of its own. Connected
    /// already is success.
    ///
    /// # Errors
    ///
    /// [`Error::Fork`].
    async fn connect_nics(&self, _id: &MachineId) -> Result<()> {
        Ok(())
    }

    /// Finds and repairs what an earlier owner left half done: machines half
    /// made are destroyed, hypervisor processes without a machine are ended,
    /// machines that went off unseen get their cause recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Reconcile`].
    async fn reconcile(&self) -> Result<Vec<Repair>>;
}
