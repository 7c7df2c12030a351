//! Who the machine is: what a fork must have of its own before any instruction of the workload.

use crate::clock;
use crate::failure::{Context, Result, invalid};
use crate::prelude::*;
use crate::root::write_file;
use crate::sys;
use core::fmt::Write;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::system::{setdomainname, sethostname};
use tether_wire::message::Identity;

/// Takes it on: random generator first, so that nothing after it shares a number with another
/// machine, then clock and names. The host was `heard` saying it at that moment of [`clock::now`].
///
/// # Errors
/// Which part, and why.
pub fn assume(identity: &Identity, heard: u64) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let what = || "seeding the random generator";
    let random = open("/dev/urandom", flags, Mode::empty()).context(what)?;
    sys::seed_generator(random.as_fd(), &identity.seed).context(what)?;
    clock::set(clock::since_heard(identity.unix_nanos, heard))?;
    check_name(&identity.hostname)?;
    sethostname(identity.hostname.as_bytes()).context(|| "setting the hostname")?;
    if !identity.domainname.is_empty() {
        check_name(&identity.domainname)?;
        setdomainname(identity.domainname.as_bytes()).context(|| "setting the domain name")?;
    }
    write_file("hostname", &format!("{}\n", identity.hostname))?;
    write_file("machine-id", &machine_id(&identity.machine_id))
}

/// A name ends up in lines of /etc/hosts.
fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_graphic();
    if name.len() <= 64 && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(invalid(format!("the host name {name:?} is not possible")))
    }
}

/// machine-id(5): 32 lower-case hexadecimal digits and a newline.
fn machine_id(id: &[u8; 16]) -> String {
    let mut text = String::with_capacity(33);
    for byte in id {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_32_digits_and_a_newline() {
        let mut id = [0; 16];
        id[0] = 0xab;
        id[15] = 1;
        assert_eq!(machine_id(&id), "ab000000000000000000000000000001\n");
    }

    #[test]
    fn names_that_would_break_a_line_are_refused() {
        assert!(check_name("web-1.example").is_ok());
        assert!(check_name("").is_ok());
        assert!(check_name("two words").is_err());
        assert!(check_name("line\nbreak").is_err());
        assert!(check_name(&"x".repeat(65)).is_err());
    }
}
