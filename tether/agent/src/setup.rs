//! Work that waits for devices: the setup, another mount, another network.
//!
//! A task is a row of steps under one deadline. A step is tried when its task comes to the front and
//! again whenever the kernel says that a device came; there is no polling. Tasks are done one after
//! the other, so a volume that does not come holds up what was asked for after it, for as long as its
//! deadline. Filling a new volume from
//! the image takes as long as it takes, so a process of its own does that ([`Work::Fill`]).

use crate::clock;
use crate::container::Container;
use crate::disk;
use crate::failure::{Result, system};
use crate::mount::parse_options;
use crate::network::State;
use crate::poller::Token;
use crate::prelude::*;
use crate::root::{self, Root, Volume};
use crate::standstill::FORK_FILE;
use crate::sys;
use alloc::collections::VecDeque;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::io::{read, write};
use rustix::mount::MountFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tether_wire::guest::Ticket;
use tether_wire::message::{Error, ErrorKind, Mount, MountSource, Network, Reply};

/// One step.
pub enum Work {
    /// Wait for the image disk and mount it.
    Root(tether_wire::message::Root),
    /// Wait for the disk, if it is one, and mount it.
    Mount(Mount),
    /// A worker copies what the image has into the new volume.
    Fill(Mount, Worker),
    /// Lay /etc/hosts and its like over the image's; then make it read-only if asked.
    Files {
        /// `--read-only`.
        read_only: bool,
    },
    /// Wait for the vNICs and set them up.
    Network(Network),
    /// Wait until every DHCP client has its first lease.
    Lease,
}

/// A process that fills a volume.
pub struct Worker {
    pid: i32,
    failure: OwnedFd,
}

/// Steps, in order, and whom to tell.
pub struct Task {
    ticket: Ticket,
    steps: VecDeque<Work>,
    deadline: u64,
}

impl Task {
    /// A task that has `milliseconds` from now.
    pub fn new(ticket: Ticket, steps: VecDeque<Work>, milliseconds: u32) -> Self {
        Self {
            ticket,
            steps,
            deadline: clock::now() + u64::from(milliseconds) * 1000,
        }
    }

    /// When it is given up, in microseconds. Filling a volume is never given up halfway.
    pub fn deadline(&self) -> u64 {
        match self.steps.front() {
            Some(Work::Fill(..)) => u64::MAX,
            _ => self.deadline,
        }
    }
}

/// What became of a step.
pub(crate) enum Progress {
    Done,
    /// It waits, for this; tried again when something comes.
    Waiting(Work),
    /// Done, and this comes before what follows.
    Then(Work),
}

impl Container {
    /// Goes as far as it goes.
    pub fn advance_tasks(&mut self) {
        while let Some(mut task) = self.tasks.pop_front() {
            let Some(work) = task.steps.pop_front() else {
                self.answers.push((task.ticket, Ok(Reply::Done)));
                continue;
            };
            match self.step(work) {
                Ok(Progress::Done) => self.tasks.push_front(task),
                Ok(Progress::Then(next)) => {
                    task.steps.push_front(next);
                    self.tasks.push_front(task);
                }
                Ok(Progress::Waiting(work)) => {
                    task.steps.push_front(work);
                    self.tasks.push_front(task);
                    return;
                }
                Err(error) => self.answers.push((task.ticket, Err(error))),
            }
        }
    }

    /// Gives up what has waited too long.
    pub fn expire_tasks(&mut self, now: u64) {
        if self.tasks.front().is_none_or(|task| task.deadline() > now) {
            return;
        }
        if let Some(task) = self.tasks.pop_front() {
            let error = match task.steps.front() {
                Some(Work::Root(root)) => disk::absent(&root.disk),
                Some(Work::Mount(Mount {
                    source: MountSource::Disk { disk, .. },
                    ..
                })) => disk::absent(disk),
                Some(Work::Network(network)) => match State::absent(network) {
                    Some(wanted) => State::absence(wanted),
                    None => late("setting up the network"),
                },
                Some(Work::Lease) => {
                    let name = self.network.without_lease().unwrap_or("a vNIC");
                    late(&format!("waiting for a DHCP lease on {name}"))
                }
                _ => late("setting up"),
            };
            self.answers.push((task.ticket, Err(error)));
        }
        self.advance_tasks();
    }

    /// Ends every task, because the machine does.
    pub fn cancel_tasks(&mut self) {
        for task in self.tasks.drain(..) {
            if let Some(Work::Fill(_, worker)) = task.steps.front() {
                let _ = sys::kill(worker.pid, libc::SIGKILL);
            }
            let error = Error::new(ErrorKind::Cancelled, "the machine is shutting down");
            self.answers.push((task.ticket, Err(error)));
        }
    }

    /// Tries one step.
    pub(crate) fn step(&mut self, work: Work) -> Result<Progress> {
        match work {
            Work::Root(wanted) => {
                let Some(device) = disk::find(&wanted.disk)? else {
                    return Ok(Progress::Waiting(Work::Root(wanted)));
                };
                self.root = Some(Root::mount(&device)?);
                Ok(Progress::Done)
            }
            Work::Mount(mount) => self.mount_step(mount),
            Work::Fill(mount, worker) => self.fill_step(mount, worker),
            Work::Files { read_only } => {
                // Hosts and name service come with the network; the files must be there to mount.
                root::write_file("hosts", "")?;
                root::write_file("resolv.conf", "")?;
                let root = self.mounted_root()?;
                root.mount_files()?;
                root.write_device_file(FORK_FILE, "0\n")?;
                if read_only {
                    root.make_read_only()?;
                }
                Ok(Progress::Done)
            }
            Work::Network(network) => {
                if State::absent(&network).is_some() {
                    return Ok(Progress::Waiting(Work::Network(network)));
                }
                let names = (self.names.0.as_str(), self.names.1.as_str());
                self.network
                    .apply(network, names, &self.poller, clock::now())?;
                Ok(Progress::Done)
            }
            Work::Lease => Ok(match self.network.without_lease() {
                Some(_) => Progress::Waiting(Work::Lease),
                None => Progress::Done,
            }),
        }
    }

    fn mounted_root(&self) -> Result<&Root> {
        self.root
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Busy, "the container has no root yet"))
    }

    fn mount_step(&mut self, mount: Mount) -> Result<Progress> {
        let root = self.mounted_root()?;
        match &mount.source {
            MountSource::Tmpfs {
                size,
                mode,
                options,
            } => {
                let (mut flags, mut data) = parse_options(options)?;
                if mount.read_only {
                    flags |= MountFlags::RDONLY;
                }
                if !data.is_empty() {
                    data.push(',');
                }
                data.push_str(&format!("mode={:o}", mode & 0o7777));
                if *size > 0 {
                    data.push_str(&format!(",size={size}"));
                }
                root.mount_tmpfs(&mount.target, flags, &data)?;
            }
            MountSource::Disk { disk, populate } => {
                let Some(device) = disk::find(disk)? else {
                    return Ok(Progress::Waiting(Work::Mount(mount)));
                };
                let mut volume = Volume::Device(device);
                if let (Volume::Device(device), true) = (&volume, *populate) {
                    if root.prepare_volume(device, &mount.target)? {
                        let worker = self.start_filling(&mount)?;
                        return Ok(Progress::Then(Work::Fill(mount, worker)));
                    }
                    volume = Volume::Prepared;
                }
                root.mount_volume(&volume, &mount.target, mount.read_only)?;
            }
        }
        Ok(Progress::Done)
    }

    /// Starts the worker; what it writes into the pipe is why it failed.
    fn start_filling(&self, mount: &Mount) -> Result<Worker> {
        let failed = |errno| system(format!("filling the volume at {}", mount.target), errno);
        let (failure, told) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(failed)?;
        self.poller.watch(&failure, EventFlags::IN, Token::Worker)?;
        let root = self.mounted_root()?;
        let pid = sys::fork_worker(|| match root.fill_volume(&mount.target) {
            Ok(()) => 0,
            Err(error) => {
                let _ = write(&told, error.message.as_bytes());
                1
            }
        })
        .map_err(failed)?;
        Ok(Worker { pid, failure })
    }

    fn fill_step(&mut self, mount: Mount, worker: Worker) -> Result<Progress> {
        let mut message = [0; 512];
        match read(&worker.failure, &mut message) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(Progress::Waiting(Work::Fill(mount, worker))),
            Ok(0) => {
                let root = self.mounted_root()?;
                root.mount_volume(&Volume::Prepared, &mount.target, mount.read_only)?;
                Ok(Progress::Done)
            }
            Ok(length) => Err(Error::new(
                ErrorKind::System,
                String::from_utf8_lossy(&message[..length]),
            )),
            Err(errno) => Err(system("filling a volume", errno)),
        }
    }
}

fn late(what: &str) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!("{what} did not end within its deadline"),
    )
}
