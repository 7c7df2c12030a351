//! Tether: process 1 of a containerVM.
//!
//! The story, in order: block every signal; mount the machine's own pseudo file systems; put tether
//! out of the OOM killer's reach; read what the host left to be read; open the channel. Until then an
//! error has nobody to be told to, so it is printed on the console and the machine powers off.
//!
//! Then comes the point of no return ([`start`]): from there on errors are replies, and the loop in
//! [`event_loop`] runs until the host, or nobody, is left to end it.
//!
//! What is deliberately absent: threads, an allocator of its own, a shell, any file but this one.

#![cfg_attr(not(test), no_std, no_main)]
#![deny(unsafe_code)]

extern crate alloc;
// Where sys/alone.rs is not compiled, this brings the allocator and the panic handler.
#[cfg(not(any(all(target_env = "musl", panic = "abort"), test)))]
extern crate std;

mod boot;
mod cgroup;
mod channel;
mod clock;
mod container;
mod copy;
mod disk;
mod event_loop;
mod failure;
mod files;
mod fork;
mod guestinfo;
mod identity;
mod log;
mod mount;
mod network;
mod poller;
mod prelude;
mod process;
mod process_list;
mod reaper;
mod rehearsal;
mod root;
mod setup;
mod shutdown;
mod standstill;
mod statistics;
#[allow(unsafe_code)]
mod sys;
mod transfer;
mod tree;

use event_loop::Tether;
use failure::Result;

/// Where the C library's `main` leads. Never returns: process 1 must not.
#[cfg_attr(test, allow(dead_code))]
fn start() -> ! {
    if !rustix::process::getpid().is_init() {
        let words = b"tether is process 1 of a containerVM and is of no use as anything else\n";
        sys::write_somewhere(2, words);
        sys::exit(125);
    }
    match begin() {
        // The point of no return. Before it an error ends the machine; after it the host is there to
        // be told, and the machine ends only when it is asked to.
        Ok(tether) => tether.run(),
        Err(error) => shutdown::die(format_args!("cannot start: {}", error.message)),
    }
}

fn begin() -> Result<Tether> {
    sys::block_signals();
    boot::mount_file_systems()?;
    log::open();
    boot::protect();
    guestinfo::tell_platform();
    let configuration = boot::Configuration::read()?;
    let mut tether = Tether::new(&configuration)?;
    info!("ready on {:?}", configuration.channel);
    if !configuration.is_template {
        fork::keep_names()?;
    } else {
        fork::leave_room()?;
        tether.expect_fork()?;
    }
    Ok(tether)
}
