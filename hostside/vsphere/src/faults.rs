//! What a server says when it refuses or fails: the fault's own type and words, whoever reads them.

use crate::soap::{Element as _, Node};
use crate::types::ManagedObject;

/// A fault of the API, from an answer or from a task. Its type keeps its name and its fields, known here or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The name of its type, as in `InvalidPowerState`; empty if the server gave none.
    pub name: Box<str>,
    /// The server's words.
    pub message: Box<str>,
    /// Its fields, as they were read.
    pub detail: Box<Node>,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.name.is_empty() {
            "a fault without a type"
        } else {
            &self.name
        };
        f.write_str(name)?;
        if !self.message.is_empty() && self.message != self.name {
            write!(f, ": {}", self.message)?;
        }
        if let Some(about) = self.about() {
            write!(f, " ({about})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// The fault in a SOAP fault element.
    pub(crate) fn of_soap(fault: &Node) -> Self {
        let message = fault.text_of("faultstring").unwrap_or_default().to_owned();
        let detail = fault
            .child("detail")
            .and_then(|detail| detail.children.first())
            .cloned()
            .unwrap_or_default();
        Self::named(detail, message)
    }

    /// The fault in a `LocalizedMethodFault`.
    pub(crate) fn of_task(error: &Node) -> Self {
        let message = error.text_of("localizedMessage").unwrap_or_default();
        let detail = error.child("fault").cloned().unwrap_or_default();
        Self::named(detail, message.to_owned())
    }

    fn named(detail: Node, message: String) -> Self {
        let name = match detail.type_name() {
            "" => detail.name.strip_suffix("Fault").unwrap_or_default(),
            name => name,
        };
        Self {
            name: name.into(),
            message: message.into(),
            detail: Box::new(detail),
        }
    }

    /// Whether its type is this one.
    pub fn is(&self, name: &str) -> bool {
        *self.name == *name
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.detail.text_of(name)
    }

    /// The object that the field of this name is a reference to.
    pub fn object(&self, name: &str) -> Option<ManagedObject> {
        ManagedObject::read(self.detail.child(name)?).ok()
    }

    /// Whether the session that asked was not, or is no longer, logged in.
    pub fn is_logged_out(&self) -> bool {
        self.is("NotAuthenticated")
    }

    /// Whether the object it was asked of is gone.
    pub fn is_gone(&self) -> bool {
        self.is("ManagedObjectNotFound")
    }

    /// What the fault is about, from the fields that such faults have in the API reference.
    fn about(&self) -> Option<String> {
        let fields = [
            ("privilegeId", "missing privilege"),
            ("invalidProperty", "property"),
            ("property", "property"),
            ("file", "file"),
            ("name", "name"),
            ("existingState", "it is"),
            ("deviceIndex", "device change"),
            ("resourceName", "resource"),
            ("reason", "reason"),
        ];
        let parts: Vec<String> = fields
            .iter()
            .filter_map(|(field, word)| {
                let value = self.field(field).filter(|value| !value.trim().is_empty())?;
                Some(format!("{word} {}", value.trim()))
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soap::{self, Body};

    #[test]
    fn a_fault_keeps_its_type_its_words_and_its_fields() {
        let text = br#"<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><Fault><faultcode>ServerFaultCode</faultcode>
            <faultstring>Permission to perform this operation was denied.</faultstring><detail>
            <NoPermissionFault xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="NoPermission">
            <object type="Folder">group-v3</object><privilegeId>VirtualMachine.Inventory.Create</privilegeId></NoPermissionFault>
            </detail></Fault></Body></Envelope>"#;
        let Body::Fault(fault) = soap::open(text).unwrap() else {
            panic!("no fault");
        };
        assert!(fault.is("NoPermission") && !fault.is_logged_out());
        assert_eq!(
            fault.field("privilegeId"),
            Some("VirtualMachine.Inventory.Create")
        );
        assert_eq!(
            fault.to_string(),
            "NoPermission: Permission to perform this operation was denied. (missing privilege VirtualMachine.Inventory.Create)"
        );
    }

    #[test]
    fn a_fault_that_is_not_known_here_has_its_name_too() {
        let text = br#"<error xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><fault xsi:type="BrandNewFault"><x>1</x></fault><localizedMessage>new words</localizedMessage></error>"#;
        let fault = Fault::of_task(&soap::read(text).unwrap());
        assert_eq!(fault.to_string(), "BrandNewFault: new words");
        assert_eq!(fault.field("x"), Some("1"));
    }
}
