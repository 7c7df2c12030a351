//! The one instruction of VMware's backdoor, and who may run it.

use core::arch::asm;
use rustix::io::Errno;

/// What goes in and comes out by the backdoor. The rest of the registers are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
}

/// The privilege to use I/O ports, held while this lives. A child would inherit it and keep it through
/// `execve(2)` (iopl(2)), so none may be made in the meantime.
pub struct Backdoor(());

impl Backdoor {
    /// Takes the privilege.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_RAWIO`; `ENOSYS` from a kernel without `CONFIG_X86_IOPL_IOPERM`.
    pub fn open() -> Result<Self, Errno> {
        set_io_privilege(3).map(|()| Self(()))
    }

    /// One exchange: `in eax, dx`, which is VMware's to answer in all six registers.
    #[inline(never)]
    pub fn call(&mut self, registers: Registers) -> Registers {
        let Registers {
            mut eax,
            ebx,
            mut ecx,
            mut edx,
            mut esi,
            mut edi,
        } = registers;
        let mut rbx = u64::from(ebx);
        // SAFETY: reading an I/O port touches no memory of this process; the low-bandwidth commands
        // that are used here do not make the hypervisor do so either. Every register it changes is
        // named; rbx, which the compiler keeps for itself, is put back.
        unsafe {
            asm!(
                "xchg rbx, {rbx}",
                "in eax, dx",
                "xchg rbx, {rbx}",
                rbx = inout(reg) rbx,
                inout("eax") eax,
                inout("ecx") ecx,
                inout("edx") edx,
                inout("esi") esi,
                inout("edi") edi,
                options(nostack),
            );
        }
        Registers {
            eax,
            ebx: rbx as u32,
            ecx,
            edx,
            esi,
            edi,
        }
    }
}

impl Drop for Backdoor {
    fn drop(&mut self) {
        // Giving it back cannot be refused.
        let _ = set_io_privilege(0);
    }
}

fn set_io_privilege(level: libc::c_int) -> Result<(), Errno> {
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_iopl, level) };
    super::check(result as libc::c_int).map(drop)
}

/// Whether CPUID says that the hypervisor is VMware's.
pub fn cpuid_says_vmware() -> bool {
    use core::arch::x86_64::__cpuid;
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return false;
    }
    let leaf = __cpuid(0x4000_0000);
    let words = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    words.as_flattened() == b"VMwareVMware"
}
