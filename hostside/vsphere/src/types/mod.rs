//! The part of the vSphere API's types that the driver uses.
//!
//! Types, fields and methods are called what the vSphere API reference calls them, and mean what it says.
//! Fields stand in the order in which the API's published types have them, those of a base type first,
//! because servers take them in no other; the tests in `published` compare each type here with the
//! published ones. A field that is not here is neither written nor read; a type that is not here stays a
//! [`crate::soap::Node`].

mod data;
mod devices;
mod macros;
mod methods;
#[cfg(test)]
mod published;
mod reference;

pub use data::*;
pub use devices::*;
pub use methods::*;
pub use reference::ManagedObject;

use crate::soap::{Cardinality, Malformed, Node, Writer};

/// One field of a type, as the types here have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldShape {
    /// Its element's name.
    pub name: &'static str,
    /// Its type.
    pub type_name: &'static str,
    /// How often it occurs.
    pub cardinality: Cardinality,
    /// Whether each occurrence says its own type.
    pub polymorphic: bool,
}

/// A data object: a type with fields.
pub trait DataObject: Sized {
    /// The API's name for it.
    const NAME: &'static str;
    /// Its fields, in order.
    const FIELDS: &'static [FieldShape];

    /// Writes its fields, in order.
    fn write_fields(&self, out: &mut Writer);

    /// Reads its fields from the children of `node`.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    fn read_fields(node: &Node) -> Result<Self, Malformed>;
}

/// Whether a call may be sent a second time when it is not known whether the first arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or nothing more the second time.
    Safe,
    /// It may do twice what was asked once.
    Never,
}

/// A method of a managed object.
pub trait Method: DataObject + Sync {
    /// What it returns.
    type Returns: Returned;
    /// Whether it may be sent again.
    const REPEAT: Repeat;
}

/// What a method may return.
pub trait Returned: Sized + Send {
    /// Reads it from the answer.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    fn returned(answer: &Node) -> Result<Self, Malformed>;
}

impl<T: crate::soap::Field + Send> Returned for T {
    fn returned(answer: &Node) -> Result<Self, Malformed> {
        T::read_field(answer, "returnval")
    }
}

/// Nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nothing;

impl Returned for Nothing {
    fn returned(_answer: &Node) -> Result<Self, Malformed> {
        Ok(Self)
    }
}

/// What PRIVILEGES.md has to say of a method.
#[derive(Debug, Clone, Copy)]
pub struct MethodFacts {
    /// Its name.
    pub name: &'static str,
    /// The managed object type whose method it is.
    pub object: &'static str,
    /// What it is called for.
    pub purpose: &'static str,
    /// The privileges that the API reference asks for it, as the driver calls it.
    pub privileges: &'static [&'static str],
    /// Whether it may be sent again.
    pub repeat: Repeat,
}
