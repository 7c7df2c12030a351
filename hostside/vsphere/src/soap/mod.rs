//! SOAP 1.1 as the vSphere API speaks it: one element in a body, answered by one element or a fault.
//!
//! [`Node`] is what was read, [`Writer`] what is written; [`Element`] and [`Field`] turn typed values into
//! one and the other. Elements are known by namespace and local name, never by prefix, and what has no
//! type here stays a [`Node`], which can be written again as it was.

mod node;
mod reader;
mod value;
mod writer;

pub use node::{Node, TypeName};
pub use reader::{Unreadable, read};
pub use value::{Cardinality, Element, Field, Malformed, Raw};
pub use writer::Writer;

use crate::faults::Fault;

/// The namespace of the vSphere API.
pub const VIM: &str = "urn:vim25";
/// The namespace of `xsi:type`.
pub const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// The namespace of the primitive types.
pub const XSD: &str = "http://www.w3.org/2001/XMLSchema";
/// The namespace of SOAP 1.1 envelopes.
pub const SOAP: &str = "http://schemas.xmlsoap.org/soap/envelope/";

/// An envelope whose body is one element of the API's namespace.
pub fn envelope(method: &str, parameters: impl FnOnce(&mut Writer)) -> String {
    let mut out = Writer::default();
    out.text_raw(concat!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>",
        "<soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\"",
        " xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"",
        " xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>",
    ));
    out.text_raw(&format!("<{method} xmlns=\"{VIM}\">"));
    parameters(&mut out);
    out.text_raw(&format!("</{method}></soapenv:Body></soapenv:Envelope>"));
    out.finish()
}

/// What a body held.
#[derive(Debug)]
pub enum Body {
    /// The answer's element.
    Answer(Node),
    /// The server refused or failed.
    Fault(Fault),
}

/// Reads an envelope.
///
/// # Errors
///
/// Not XML, too deep, or not a SOAP envelope with a body.
pub fn open(bytes: &[u8]) -> Result<Body, Unreadable> {
    let envelope = read(bytes)?;
    if envelope.name != "Envelope" || envelope.namespace != SOAP {
        return Err(Unreadable::NotSoap(envelope.name));
    }
    let body = envelope
        .children
        .into_iter()
        .find(|child| child.name == "Body" && child.namespace == SOAP)
        .ok_or_else(|| Unreadable::NotSoap("an envelope without a body".into()))?;
    let answer = body
        .children
        .into_iter()
        .next()
        .ok_or_else(|| Unreadable::NotSoap("an empty body".into()))?;
    if answer.name == "Fault" && answer.namespace == SOAP {
        return Ok(Body::Fault(Fault::of_soap(&answer)));
    }
    Ok(Body::Answer(answer))
}

#[cfg(test)]
mod tests;
