//! Whether a VM may be powered on: the VCH's limits, as a ledger. Nothing here waits or does I/O.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hypervisor::{Cpus, Memory, Protocol, PublishedPort};

use crate::error::Error;
use crate::identity::ContainerId;

/// What a VCH has, and what a container gets that does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all VMs that are on, together.
    pub memory: Memory,
    /// The most virtual CPUs of one VM: processors are shared, memory is not.
    pub cpus: Cpus,
    /// Memory of a container that does not say.
    pub default_memory: Memory,
    /// Virtual CPUs of a container that does not say.
    pub default_cpus: Cpus,
}

impl Limits {
    /// Whether a container of this size can ever run here.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub(crate) fn check(&self, memory: Memory, cpus: Cpus) -> Result<(), Error> {
        if memory > self.memory {
            return Err(self.no_memory(memory, self.memory.bytes()));
        }
        if cpus > self.cpus {
            let limit = self.cpus.count().to_string();
            return Err(Error::NoRoom {
                resource: "CPUs",
                wanted: cpus.count().to_string(),
                free: limit.clone(),
                limit,
            });
        }
        Ok(())
    }

    fn no_memory(&self, wanted: Memory, free: u64) -> Error {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        Error::NoRoom {
            resource: "memory",
            wanted: mib(wanted.bytes()),
            free: mib(free),
            limit: mib(self.memory.bytes()),
        }
    }
}

/// What the VMs that are on take.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    taken: BTreeMap<ContainerId, Taken>,
}

#[derive(Debug, Clone)]
struct Taken {
    memory: Memory,
    cpus: Cpus,
    ports: Vec<PublishedPort>,
}

impl Admission {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            taken: BTreeMap::new(),
        }
    }

    /// Takes room for a VM, or says why not. A container that has room already keeps it.
    ///
    /// # Errors
    /// [`Error::NoRoom`], [`Error::Invalid`] for a port that is taken.
    pub fn admit(
        &mut self,
        id: ContainerId,
        memory: Memory,
        cpus: Cpus,
        ports: &[PublishedPort],
    ) -> Result<(), Error> {
        self.limits.check(memory, cpus)?;
        let others = || self.taken.iter().filter(|(other, _)| **other != id);
        let used: u64 = others().map(|(_, taken)| taken.memory.bytes()).sum();
        let free = self.limits.memory.bytes().saturating_sub(used);
        if memory.bytes() > free {
            return Err(self.limits.no_memory(memory, free));
        }
        for port in ports {
            let clash = others()
                .flat_map(|(_, taken)| &taken.ports)
                .any(|other| clashes(port.protocol, port.host, other));
            if clash {
                return Err(Error::Invalid(format!(
                    "driver failed programming external connectivity: Bind for {} failed: port is already allocated",
                    port.host
                )));
            }
        }
        self.count(id, memory, cpus, ports);
        Ok(())
    }

    /// Counts a VM that is on, whatever the limits say: it is there.
    pub fn count(&mut self, id: ContainerId, memory: Memory, cpus: Cpus, ports: &[PublishedPort]) {
        let taken = Taken {
            memory,
            cpus,
            ports: ports.to_vec(),
        };
        self.taken.insert(id, taken);
    }

    /// The VM is off.
    pub fn release(&mut self, id: &ContainerId) {
        self.taken.remove(id);
    }

    /// Memory in bytes, virtual CPUs.
    pub fn used(&self) -> (u64, u32) {
        let memory = self.taken.values().map(|taken| taken.memory.bytes()).sum();
        (memory, self.taken.values().map(|t| t.cpus.count()).sum())
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }
}

/// Whether listening on `host` is not possible beside `other`.
pub(crate) fn clashes(protocol: Protocol, host: SocketAddr, other: &PublishedPort) -> bool {
    let same_family = host.is_ipv4() == other.host.is_ipv4();
    let overlaps = host.ip() == other.host.ip()
        || same_family && (host.ip().is_unspecified() || other.host.ip().is_unspecified());
    protocol == other.protocol && host.port() == other.host.port() && overlaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(mib: u64) -> Limits {
        Limits {
            memory: Memory::from_mib(mib).unwrap(),
            cpus: Cpus::new(2).unwrap(),
            default_memory: Memory::from_mib(64).unwrap(),
            default_cpus: Cpus::ONE,
        }
    }

    fn id(number: u8) -> ContainerId {
        format!("{number:02x}").repeat(32).parse().unwrap()
    }

    fn port(host: &str) -> PublishedPort {
        PublishedPort {
            protocol: Protocol::Tcp,
            host: host.parse().unwrap(),
            guest_port: 80,
        }
    }

    #[test]
    fn what_can_never_fit_is_refused_with_numbers() {
        let error = limits(128)
            .check(Memory::from_mib(256).unwrap(), Cpus::ONE)
            .unwrap_err();
        assert!(error.to_string().contains("256 MiB wanted"), "{error}");
        let error = limits(128)
            .check(Memory::from_mib(64).unwrap(), Cpus::new(3).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("CPUs"), "{error}");
    }

    #[test]
    fn two_containers_do_not_get_one_port() {
        let mut admission = Admission::new(limits(1024));
        let memory = Memory::from_mib(64).unwrap();
        let mut admit =
            |number, ports: &[PublishedPort]| admission.admit(id(number), memory, Cpus::ONE, ports);
        admit(1, &[port("0.0.0.0:80")]).unwrap();
        let error = admit(2, &[port("127.0.0.1:80")]).unwrap_err();
        assert!(error.to_string().contains("port is already allocated"));
        admit(2, &[port("127.0.0.1:81")]).unwrap();
        admit(3, &[port("[::]:80")]).unwrap();
        admit(1, &[port("0.0.0.0:80")]).unwrap();
    }

    proptest! {
        #[test]
        fn the_sum_is_never_above_the_limit(steps in prop::collection::vec((0u8..8, 0u64..200, any::<bool>()), 0..60)) {
            let mut admission = Admission::new(limits(512));
            let mut model = BTreeMap::new();
            for (number, mib, leave) in steps {
                if leave {
                    admission.release(&id(number));
                    model.remove(&number);
                    continue;
                }
                let memory = Memory::from_mib(mib + 32).unwrap();
                let others: u64 = model.iter().filter(|(n, _)| **n != number).map(|(_, m)| *m).sum();
                let fits = others + memory.mib() <= 512;
                prop_assert_eq!(admission.admit(id(number), memory, Cpus::ONE, &[]).is_ok(), fits);
                if fits {
                    model.insert(number, memory.mib());
                }
                prop_assert_eq!(admission.used().0 >> 20, model.values().sum::<u64>());
                prop_assert!(admission.used().0 >> 20 <= 512);
            }
        }
    }
}
