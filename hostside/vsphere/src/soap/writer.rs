//! [`Node`]s and typed values to text.

use std::fmt::Write as _;

use quick_xml::escape::partial_escape;

use super::node::Node;
use super::{VIM, XSD};

/// Builds the text of a document. The prefixes `xsi` and `xsd` are bound, and the default namespace is the
/// API's, by [`super::envelope`].
#[derive(Debug, Default)]
pub struct Writer(String);

impl Writer {
    /// The text written.
    pub fn finish(self) -> String {
        self.0
    }

    pub(super) fn text_raw(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// Opens an element.
    pub fn open(&mut self, name: &str) {
        let _ = write!(self.0, "<{name}>");
    }

    /// Opens an element that says its type, one of the API's.
    pub fn open_typed(&mut self, name: &str, type_name: &str) {
        let _ = write!(self.0, "<{name} xsi:type=\"{type_name}\">");
    }

    /// Closes the element.
    pub fn close(&mut self, name: &str) {
        let _ = write!(self.0, "</{name}>");
    }

    /// Text, escaped. A character that XML 1.0 cannot carry becomes U+FFFD.
    pub fn text(&mut self, text: &str) {
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
        if text.chars().all(allowed) && !text.contains('\r') {
            self.0.push_str(&partial_escape(text));
            return;
        }
        for c in text.chars() {
            match c {
                // A carriage return as such would be read as a line feed (XML 1.0, 2.11).
                '\r' => self.0.push_str("&#13;"),
                c if allowed(c) => self
                    .0
                    .push_str(&partial_escape(&*c.encode_utf8(&mut [0; 4]))),
                _ => self.0.push('\u{fffd}'),
            }
        }
    }

    /// An element with nothing but text.
    pub fn leaf(&mut self, name: &str, text: &str) {
        self.open(name);
        self.text(text);
        self.close(name);
    }

    /// An element with nothing but text, of one of XML Schema's types.
    pub fn leaf_typed(&mut self, name: &str, xsd_type: &str, text: &str) {
        let _ = write!(self.0, "<{name} xsi:type=\"xsd:{xsd_type}\">");
        self.text(text);
        self.close(name);
    }

    /// A reference to a managed object.
    pub fn reference(&mut self, name: &str, kind: &str, value: &str) {
        let _ = write!(self.0, "<{name} type=\"");
        self.0.push_str(&quick_xml::escape::escape(kind));
        self.0.push_str("\">");
        self.text(value);
        self.close(name);
    }

    /// An element that was read, under another name.
    pub fn node(&mut self, name: &str, node: &Node) {
        let _ = write!(self.0, "<{name}");
        if let Some(kind) = &node.xsi_type {
            match kind.namespace.as_str() {
                XSD => {
                    let _ = write!(self.0, " xsi:type=\"xsd:{}\"", kind.name);
                }
                "" | VIM => {
                    let _ = write!(self.0, " xsi:type=\"{}\"", kind.name);
                }
                other => {
                    let other = quick_xml::escape::escape(other);
                    let _ = write!(self.0, " xmlns:t=\"{other}\" xsi:type=\"t:{}\"", kind.name);
                }
            }
        }
        if let Some(kind) = &node.reference_type {
            let _ = write!(
                self.0,
                " type=\"{}\"",
                quick_xml::escape::escape(kind.as_str())
            );
        }
        if node.nil {
            self.0.push_str(" xsi:nil=\"true\"");
        }
        self.0.push('>');
        self.text(&node.text);
        for child in &node.children {
            self.node(&child.name, child);
        }
        self.close(name);
    }
}
