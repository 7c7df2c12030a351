//! Whether guests run on the host's processor.

/// How guest instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// On the host's processor.
    Kvm,
    /// In emulation.
    Tcg,
}
