//! What is written on a machine: entries of its `extraConfig`.
//!
//! | key | what |
//! |---|---|
//! | `vch.owner` | the VCH it belongs to |
//! | `vch.id` | its identity, which is its `instanceUuid` only where it was not forked |
//! | `vch.role` | `template` for what others are forked from, else `machine` |
//! | `vch.template` | a template's name |
//! | `vch.began` | how its last run began, JSON |
//! | `vch.spec` | its specification, JSON |
//! | `vch.created`, `vch.started`, `vch.stopped` | nanoseconds since 1970 |
//! | `vch.cause` | why it is off, JSON |
//! | `vch.state` | `leaving` while it is being destroyed, `coming` while it is no machine, or template, yet |
//! | `vch.meta.KEY` | metadata |
//! | `guestinfo.tether.key` | the channel's key, 64 hexadecimal digits |
//! | `guestinfo.tether.identity` | boot id and UUID of a fork; zeros for a template |
//! | `guestinfo.tether.channel` | what carries the channel, `serial:ttyS1` |
//! | `guestinfo.tether.disks` | which disk is which, `0=root,1=data`: SCSI target and serial |
//!
//! Entries are lines of the machine's configuration file, which servers bound and quote in ways of their
//! own. So a value of ours is printable ASCII, with `%XX` for what is not, in pieces of [`PIECE`] bytes: the
//! first under its key, after the number of pieces and a colon, the others under `KEY#1`, `KEY#2`, ... An
//! empty value removes an entry, as the API says.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hypervisor::{Cause, ChannelKey, MachineId, MachineSpec, Metadata, Started, StopCause};

use crate::soap::{Node, Raw};
use crate::types::{ConfigOption, OptionValue};

/// The most bytes of one entry's value.
const PIECE: usize = 3000;
/// The most pieces of one value: 3 MB.
const PIECES_MAX: usize = 1000;

pub const OWNER: &str = "vch.owner";
pub const SPEC: &str = "vch.spec";
pub const CREATED: &str = "vch.created";
pub const STARTED: &str = "vch.started";
pub const STOPPED: &str = "vch.stopped";
pub const CAUSE: &str = "vch.cause";
pub const STATE: &str = "vch.state";
pub const LEAVING: &str = "leaving";
pub const COMING: &str = "coming";
pub const ID: &str = "vch.id";
pub const ROLE: &str = "vch.role";
pub const TEMPLATE_ROLE: &str = "template";
pub const MACHINE_ROLE: &str = "machine";
pub const TEMPLATE: &str = "vch.template";
pub const BEGAN: &str = "vch.began";
pub const IDENTITY: &str = "guestinfo.tether.identity";
const METADATA: &str = "vch.meta.";
pub const KEY: &str = "guestinfo.tether.key";
pub const CHANNEL: &str = "guestinfo.tether.channel";
pub const DISKS: &str = "guestinfo.tether.disks";

/// All entries of an `extraConfig`, by key.
pub type Entries = BTreeMap<String, String>;

/// Reads the property `config.extraConfig`. The last of one key counts.
pub fn entries(property: &Node) -> Entries {
    property
        .children
        .iter()
        .filter_map(|option| {
            let key = option.text_of("key")?;
            Some((
                key.to_owned(),
                option.text_of("value").unwrap_or_default().to_owned(),
            ))
        })
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// Changes to an `extraConfig`, in the making.
#[derive(Debug, Default)]
pub struct Edit(Vec<(String, String)>);

impl Edit {
    /// Sets an entry as it is, for the guest or the server to read.
    pub fn plain(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.push((key.to_owned(), value.into()));
        self
    }

    /// Sets a value of ours. `before` is what there was, from which pieces may be left over.
    pub fn set(mut self, key: &str, value: &str, before: &Entries) -> Self {
        let text = encode(value);
        let pieces: Vec<&str> = split(&text);
        for (number, piece) in pieces.iter().enumerate() {
            let (key, value) = match number {
                0 => (key.to_owned(), format!("{}:{piece}", pieces.len())),
                number => (format!("{key}#{number}"), (*piece).to_owned()),
            };
            self.0.push((key, value));
        }
        self.clear_from(pieces.len(), key, before);
        self
    }

    /// Removes a value of ours.
    pub fn remove(mut self, key: &str, before: &Entries) -> Self {
        if before.contains_key(key) {
            self.0.push((key.to_owned(), String::new()));
        }
        self.clear_from(1, key, before);
        self
    }

    fn clear_from(&mut self, first: usize, key: &str, before: &Entries) {
        for number in first.max(1)..PIECES_MAX {
            let piece = format!("{key}#{number}");
            if !before.contains_key(&piece) {
                return;
            }
            self.0.push((piece, String::new()));
        }
    }

    /// What these changes make of entries.
    pub fn apply(self, entries: &mut Entries) {
        for (key, value) in self.0 {
            match value.is_empty() {
                true => entries.remove(&key),
                false => entries.insert(key, value),
            };
        }
    }

    /// As the API takes it.
    pub fn options(self) -> Vec<ConfigOption> {
        self.0
            .into_iter()
            .map(|(key, value)| {
                ConfigOption::from(OptionValue {
                    key,
                    value: Raw::string(value),
                })
            })
            .collect()
    }
}

/// What changed options make of an `extraConfig` as it was read.
pub fn merge(property: &mut Node, changes: &[ConfigOption]) {
    for change in changes {
        let ConfigOption::OptionValue(option) = change else {
            continue;
        };
        let is_it = |node: &Node| node.text_of("key") == Some(&option.key);
        property.children.retain(|node| !is_it(node));
        if !option.value.text().is_empty() {
            let leaf = |name: &str, text: &str| Node {
                name: name.to_owned(),
                text: text.to_owned(),
                ..Node::default()
            };
            property.children.push(Node {
                name: "OptionValue".into(),
                children: vec![leaf("key", &option.key), leaf("value", option.value.text())],
                ..Node::default()
            });
        }
    }
}

/// A value of ours, if it is there and whole.
pub fn value(entries: &Entries, key: &str) -> Option<String> {
    let (count, first) = entries.get(key)?.split_once(':')?;
    let count: usize = count.parse().ok()?;
    let mut text = first.to_owned();
    for number in 1..count.min(PIECES_MAX) {
        text.push_str(entries.get(&format!("{key}#{number}"))?);
    }
    decode(&text)
}

/// The key of a metadata entry.
pub fn metadata_key(key: &str) -> String {
    format!("{METADATA}{}", encode(key))
}

/// All metadata.
pub fn metadata(entries: &Entries) -> Metadata {
    entries
        .keys()
        .filter(|key| !key.contains('#'))
        .filter_map(|key| {
            let name = decode(key.strip_prefix(METADATA)?)?;
            Some((name, value(entries, key)?))
        })
        .collect()
}

/// Whether metadata can be written.
///
/// # Errors
///
/// A key or value is too long.
pub fn check(key: &str, value: &str) -> Result<(), Cause> {
    let long = |what: &str, most: usize| {
        Err(Cause::hypervisor(format!(
            "the {what} of the metadata entry {key:.60} is longer than the {most} bytes that fit into a machine's extraConfig"
        )))
    };
    if encode(key).len() > 200 {
        return long("key", 200);
    }
    let most = PIECE * (PIECES_MAX - 1);
    if encode(value).len() > most {
        return long("value", most);
    }
    Ok(())
}

/// What a machine's entries say of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What it was made as, with every change since.
    pub spec: MachineSpec,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last powered on.
    pub started: SystemTime,
    /// When it last went off.
    pub stopped: SystemTime,
    /// Why.
    pub cause: Option<StopCause>,
    /// How its last run began, where that is written down.
    pub began: Option<Started>,
    /// Whether it is being destroyed.
    pub leaving: bool,
}

impl Record {
    /// Reads it; `None` where it is no machine of this VCH, none yet, or not whole.
    pub fn read(entries: &Entries, owner: &str) -> Option<Self> {
        if value(entries, OWNER)? != owner || is_template(entries) || is_coming(entries) {
            return None;
        }
        let time = |key| value(entries, key).and_then(|text| from_nanos(&text));
        Some(Self {
            spec: serde_json::from_str(&value(entries, SPEC)?).ok()?,
            created: time(CREATED).unwrap_or(UNIX_EPOCH),
            started: time(STARTED).unwrap_or(UNIX_EPOCH),
            stopped: time(STOPPED).unwrap_or(UNIX_EPOCH),
            cause: value(entries, CAUSE).and_then(|text| serde_json::from_str(&text).ok()),
            began: value(entries, BEGAN).and_then(|text| serde_json::from_str(&text).ok()),
            leaving: value(entries, STATE).as_deref() == Some(LEAVING),
        })
    }
}

/// Whether others are forked from it.
pub fn is_template(entries: &Entries) -> bool {
    value(entries, ROLE).as_deref() == Some(TEMPLATE_ROLE)
}

/// Whether it is being made still, or its making was cut short.
pub fn is_coming(entries: &Entries) -> bool {
    value(entries, STATE).as_deref() == Some(COMING)
}

/// One entry of the property `config.extraConfig`, without reading the others.
pub fn entry<'a>(property: &'a Node, key: &str) -> Option<&'a str> {
    let mut all = property.children.iter().rev();
    let found = all.find(|option| option.text_of("key") == Some(key))?;
    found.text_of("value").filter(|value| !value.is_empty())
}

/// The channel's key.
pub fn channel_key(entries: &Entries) -> Option<ChannelKey> {
    let bytes = hex::decode(entries.get(KEY)?).ok()?;
    <[u8; 32]>::try_from(bytes.as_slice())
        .ok()
        .map(ChannelKey::from_bytes)
}

/// The machine with this `config.instanceUuid`.
pub fn identity(property: &Node) -> Option<MachineId> {
    property.text.trim().to_ascii_lowercase().parse().ok()
}

/// Nanoseconds since 1970.
pub fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

fn from_nanos(text: &str) -> Option<SystemTime> {
    let nanos: u64 = text.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
}

/// Printable ASCII without what configuration files quote, and without `#`, which tells pieces apart.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' | b'|' | b'#' | b'\\' => out.push_str(&format!("%{byte:02X}")),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Pieces of at most [`PIECE`] bytes, one at least. No piece ends in a blank, which a server may take off.
fn split(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > PIECE {
        let blank =
            |at: usize| matches!(text.as_bytes()[at - 1], b' ') || text.as_bytes()[at] == b' ';
        let at = (PIECE / 2..=PIECE)
            .rev()
            .find(|at| !blank(*at))
            .unwrap_or(PIECE);
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(edit: Edit, entries: &mut Entries) {
        edit.apply(entries);
    }

    #[test]
    fn values_survive_whatever_is_in_them() {
        let long = "ä\n\"%|#\\ ".repeat(2000);
        for text in [
            "",
            " ",
            "plain",
            "a=b",
            "\u{0}",
            "two\nlines",
            long.as_str(),
            "#1",
        ] {
            let mut all = Entries::new();
            let edit = Edit::default().set("vch.x", text, &all);
            assert!(edit.0.iter().all(|(_, value)| value.len() <= PIECE + 5));
            apply(edit, &mut all);
            assert_eq!(value(&all, "vch.x").as_deref(), Some(text));
        }
    }

    #[test]
    fn a_shorter_value_leaves_no_piece_of_the_longer_one() {
        let mut all = Entries::new();
        let long = "x".repeat(4 * PIECE);
        apply(Edit::default().set("vch.x", &long, &all), &mut all);
        assert_eq!(all.len(), 4);
        let edit = Edit::default().set("vch.x", "short", &all);
        apply(edit, &mut all);
        assert_eq!(
            all,
            Entries::from([("vch.x".to_owned(), "1:short".to_owned())])
        );
        let edit = Edit::default().remove("vch.x", &all);
        apply(edit, &mut all);
        assert!(all.is_empty());
    }

    #[test]
    fn metadata_is_told_from_everything_else() {
        let mut all = Entries::from([("other".to_owned(), "1".to_owned())]);
        let long = "y".repeat(2 * PIECE);
        for (key, text) in [("a.b", "1"), ("with #", "2"), ("long", long.as_str())] {
            let edit = Edit::default().set(&metadata_key(key), text, &all);
            apply(edit, &mut all);
        }
        let expected: Metadata = [("a.b", "1"), ("with #", "2"), ("long", long.as_str())]
            .map(|(key, text)| (key.to_owned(), text.to_owned()))
            .into();
        assert_eq!(metadata(&all), expected);
        assert!(check("k", "v").is_ok() && check(&"k".repeat(300), "v").is_err());
    }

    #[test]
    fn half_a_value_is_none() {
        let all = Entries::from([("vch.x".to_owned(), "2:a".to_owned())]);
        assert_eq!(value(&all, "vch.x"), None);
    }
}
