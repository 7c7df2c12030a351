//! References to managed objects.

use std::fmt;

use crate::soap::{Element, Malformed, Node, Writer};

/// A reference to a managed object of the server's (`ManagedObjectReference`).
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManagedObject {
    /// The object's type, as in `VirtualMachine`.
    pub kind: String,
    /// Its name within the server, as in `vm-42`.
    pub value: String,
}

impl ManagedObject {
    /// The object of this type and name.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            value: value.into(),
        }
    }
}

impl fmt::Display for ManagedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for ManagedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Element for ManagedObject {
    const TYPE: &'static str = "ManagedObjectReference";

    fn write(&self, name: &str, out: &mut Writer) {
        out.reference(name, &self.kind, &self.value);
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        let kind = node
            .reference_type
            .clone()
            .ok_or_else(|| Malformed::new(&node.name, "a reference without a type"))?;
        Ok(Self {
            kind,
            value: node.text.trim().to_owned(),
        })
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        Self::new("VirtualMachine", "vm-1")
    }
}
