//! Bytes to [`Node`]s. What a server sends is untrusted: depth, bindings and entities have limits, and
//! document types, with which entities could be defined, are refused.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{PrefixDeclaration, QName, ResolveResult};
use quick_xml::reader::NsReader;

use super::node::{Node, TypeName};
use super::{XSD, XSI};

/// How deep elements may lie in each other. The deepest answers (snapshot trees) have a few dozen levels.
const DEPTH: usize = 256;

/// What cannot be read as an answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not XML.
    #[error("the answer is not well-formed XML at byte {offset}")]
    Xml {
        /// Where reading stopped.
        offset: u64,
        /// What is wrong there.
        source: quick_xml::Error,
    },
    /// It is not UTF-8.
    #[error("the answer is not UTF-8")]
    Encoding(#[source] std::str::Utf8Error),
    /// It has what no server sends.
    #[error("the answer has {0}")]
    Refused(&'static str),
    /// It is XML, but not an envelope.
    #[error("the answer is no SOAP envelope: {0}")]
    NotSoap(String),
}

/// Reads one document.
///
/// # Errors
///
/// [`Unreadable`].
pub fn read(bytes: &[u8]) -> Result<Node, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(Unreadable::Encoding)?;
    let mut reader = NsReader::from_str(text.trim_start_matches('\u{feff}'));
    let mut open: Vec<Node> = Vec::new();
    loop {
        let event = reader.read_event();
        let offset = reader.buffer_position();
        let xml = |source: quick_xml::Error| Unreadable::Xml { offset, source };
        match event.map_err(xml)? {
            Event::Start(start) => {
                if open.len() == DEPTH {
                    return Err(Unreadable::Refused("elements too deep in each other"));
                }
                open.push(element(&reader, &start).map_err(xml)?);
            }
            Event::Empty(start) => {
                let node = element(&reader, &start).map_err(xml)?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(node),
                    None => return Ok(node),
                }
            }
            Event::End(_) => {
                let Some(mut node) = open.pop() else {
                    return Err(Unreadable::Refused("an end without a start"));
                };
                if !node.children.is_empty() && node.text.trim().is_empty() {
                    node.text.clear();
                }
                match open.last_mut() {
                    Some(parent) => parent.children.push(node),
                    None => return Ok(node),
                }
            }
            Event::Text(text) => append(&mut open, &text.xml_content(XmlVersion::Implicit1_0)),
            Event::CData(text) => append(&mut open, &text.xml_content(XmlVersion::Implicit1_0)),
            Event::GeneralRef(reference) => {
                let character = match reference.resolve_char_ref().map_err(xml)? {
                    Some(character) => character,
                    None => match &*reference {
                        "lt" => '<',
                        "gt" => '>',
                        "amp" => '&',
                        "apos" => '\'',
                        "quot" => '"',
                        _ => return Err(Unreadable::Refused("an entity XML does not define")),
                    },
                };
                append(&mut open, character.encode_utf8(&mut [0; 4]));
            }
            Event::DocType(_) => return Err(Unreadable::Refused("a document type")),
            Event::Eof => return Err(Unreadable::Refused("no end: it was cut off")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
}

fn append(open: &mut [Node], text: &str) {
    if let Some(node) = open.last_mut() {
        node.text.push_str(text);
    }
}

fn element(reader: &NsReader<&[u8]>, start: &BytesStart<'_>) -> Result<Node, quick_xml::Error> {
    let resolver = reader.resolver();
    let (namespace, local) = resolver.resolve_element(start.name());
    let mut node = Node {
        namespace: bound(&namespace),
        name: local.as_ref().to_owned(),
        ..Node::default()
    };
    for attribute in start.attributes() {
        let attribute = attribute?;
        if attribute.key.as_namespace_binding().is_some_and(|binding| {
            matches!(
                binding,
                PrefixDeclaration::Default | PrefixDeclaration::Named(_)
            )
        }) {
            continue;
        }
        let value = attribute.normalized_value(XmlVersion::Implicit1_0)?;
        let (namespace, local) = resolver.resolve_attribute(attribute.key);
        match (bound(&namespace).as_str(), local.as_ref()) {
            (XSI, "type") => {
                let name = QName(&value);
                let (namespace, local) = resolver.resolve_element(name);
                node.xsi_type = Some(TypeName {
                    namespace: bound(&namespace),
                    name: local.as_ref().to_owned(),
                });
            }
            (XSI, "nil") => node.nil = matches!(&*value, "true" | "1"),
            ("", "type") => node.reference_type = Some(value.into_owned()),
            _ => {}
        }
    }
    Ok(node)
}

fn bound(namespace: &ResolveResult<'_>) -> String {
    match namespace {
        ResolveResult::Bound(name) => name.as_ref().to_owned(),
        ResolveResult::Unbound => String::new(),
        // The simulator of govmomi writes the type's namespace where its prefix belongs.
        ResolveResult::Unknown(prefix) if XSD.ends_with(prefix.as_str()) => XSD.to_owned(),
        ResolveResult::Unknown(prefix) => prefix.clone(),
    }
}
