//! Typed values: how one is written as an element and read from one, and how often a field may occur.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::XSD;
use super::node::{Node, TypeName};
use super::writer::Writer;

/// What was read is XML, but not what the API's types say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{element}: {what}")]
pub struct Malformed {
    /// The element.
    pub element: String,
    /// What is wrong with it.
    pub what: String,
}

impl Malformed {
    /// `what` is wrong with `element`.
    pub fn new(element: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            element: element.into(),
            what: what.into(),
        }
    }
}

/// A value that is one element.
pub trait Element: Sized {
    /// Its type's name: the API's for its types, and `string`, `int`, `long`, `boolean`, ... for XML Schema's.
    const TYPE: &'static str;
    /// Whether another type that extends it may stand in its place, so that it has to say which it is.
    const POLYMORPHIC: bool = false;

    /// Writes it as an element called `name`.
    fn write(&self, name: &str, out: &mut Writer);

    /// Reads it.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    fn read(node: &Node) -> Result<Self, Malformed>;

    /// A value with everything in it that it can have, for tests. `depth` bounds types that hold themselves.
    #[cfg(test)]
    fn sample(depth: u32) -> Self;
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cardinality {
    /// Once.
    One,
    /// Once or not at all.
    Optional,
    /// Any number of times.
    Many,
}

/// A field of a data object, or a parameter of a method.
pub trait Field: Sized {
    /// How often it occurs.
    const CARDINALITY: Cardinality;
    /// The type of each occurrence.
    const TYPE: &'static str;
    /// As [`Element::POLYMORPHIC`].
    const POLYMORPHIC: bool;

    /// Writes every occurrence.
    fn write_field(&self, name: &str, out: &mut Writer);

    /// Reads the children called `name`.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    fn read_field(parent: &Node, name: &str) -> Result<Self, Malformed>;

    /// As [`Element::sample`].
    #[cfg(test)]
    fn sample_field(depth: u32) -> Self;
}

impl<T: Element> Field for T {
    const CARDINALITY: Cardinality = Cardinality::One;
    const TYPE: &'static str = T::TYPE;
    const POLYMORPHIC: bool = T::POLYMORPHIC;

    fn write_field(&self, name: &str, out: &mut Writer) {
        self.write(name, out);
    }

    fn read_field(parent: &Node, name: &str) -> Result<Self, Malformed> {
        let missing = || Malformed::new(&parent.name, format!("it has no {name}"));
        T::read(parent.child(name).ok_or_else(missing)?)
    }

    #[cfg(test)]
    fn sample_field(depth: u32) -> Self {
        T::sample(depth)
    }
}

impl<T: Element> Field for Option<T> {
    const CARDINALITY: Cardinality = Cardinality::Optional;
    const TYPE: &'static str = T::TYPE;
    const POLYMORPHIC: bool = T::POLYMORPHIC;

    fn write_field(&self, name: &str, out: &mut Writer) {
        if let Some(value) = self {
            value.write(name, out);
        }
    }

    fn read_field(parent: &Node, name: &str) -> Result<Self, Malformed> {
        match parent.child(name) {
            Some(node) if !node.nil => T::read(node).map(Some),
            _ => Ok(None),
        }
    }

    #[cfg(test)]
    fn sample_field(depth: u32) -> Self {
        depth.checked_sub(1).map(T::sample)
    }
}

impl<T: Element> Field for Vec<T> {
    const CARDINALITY: Cardinality = Cardinality::Many;
    const TYPE: &'static str = T::TYPE;
    const POLYMORPHIC: bool = T::POLYMORPHIC;

    fn write_field(&self, name: &str, out: &mut Writer) {
        for value in self {
            value.write(name, out);
        }
    }

    fn read_field(parent: &Node, name: &str) -> Result<Self, Malformed> {
        parent.children_named(name).map(T::read).collect()
    }

    #[cfg(test)]
    fn sample_field(depth: u32) -> Self {
        match depth.checked_sub(1) {
            Some(depth) => vec![T::sample(depth), T::sample(depth)],
            None => Vec::new(),
        }
    }
}

impl<T: Element> Element for Box<T> {
    const TYPE: &'static str = T::TYPE;
    const POLYMORPHIC: bool = T::POLYMORPHIC;

    fn write(&self, name: &str, out: &mut Writer) {
        (**self).write(name, out);
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        T::read(node).map(Box::new)
    }

    #[cfg(test)]
    fn sample(depth: u32) -> Self {
        Box::new(T::sample(depth))
    }
}

macro_rules! primitive {
    ($type:ty, $name:literal, $sample:expr) => {
        impl Element for $type {
            const TYPE: &'static str = $name;

            fn write(&self, name: &str, out: &mut Writer) {
                out.leaf(name, &self.to_string());
            }

            fn read(node: &Node) -> Result<Self, Malformed> {
                let text = node.text.trim();
                text.parse()
                    .map_err(|_| Malformed::new(&node.name, format!("{text:?} is no {}", $name)))
            }

            #[cfg(test)]
            fn sample(_depth: u32) -> Self {
                $sample
            }
        }
    };
}

primitive!(i32, "int", 7);
primitive!(i64, "long", 7_000_000_000);

impl Element for bool {
    const TYPE: &'static str = "boolean";

    fn write(&self, name: &str, out: &mut Writer) {
        out.leaf(name, if *self { "true" } else { "false" });
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        match node.text.trim() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(Malformed::new(
                &node.name,
                format!("{other:?} is no boolean"),
            )),
        }
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        true
    }
}

impl Element for String {
    const TYPE: &'static str = "string";

    fn write(&self, name: &str, out: &mut Writer) {
        out.leaf(name, self);
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        Ok(node.text.clone())
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        "a < b & c".into()
    }
}

/// A point in time, to the second, UTC (`dateTime` of XML Schema).
impl Element for SystemTime {
    const TYPE: &'static str = "dateTime";

    fn write(&self, name: &str, out: &mut Writer) {
        let seconds = self
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(i64::try_from(days).unwrap_or_default());
        out.leaf(
            name,
            &format!(
                "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
                rest / 3600,
                rest / 60 % 60,
                rest % 60
            ),
        );
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        let text = node.text.trim();
        moment(text)
            .ok_or_else(|| Malformed::new(&node.name, format!("{text:?} is no date and time")))
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }
}

/// The date that is `days` days after 1970-01-01 (Howard Hinnant, *chrono-Compatible Low-Level Date
/// Algorithms*, `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (
        yoe + era * 400 + i64::from(month <= 2),
        month,
        doy - (153 * mp + 2) / 5 + 1,
    )
}

/// The reverse (`days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// `2024-02-29T12:00:00.25Z`, with or without fraction, with `Z` or an offset.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once('T')?;
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    let end = time.find(['Z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(end);
    let offset = match zone.as_bytes().first() {
        None | Some(b'Z') => 0,
        Some(sign) => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if *sign == b'-' { -offset } else { offset }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    let nanos: u64 = format!("{fraction:0<9.9}").parse().ok()?;
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    valid.then_some(())?;
    let seconds = u64::try_from(seconds).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

/// A value of any type (`xsd:anyType`), which says which one it is. What was read is written again as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw(pub Node);

impl Raw {
    /// A string.
    pub fn string(text: impl Into<String>) -> Self {
        Self(Node {
            xsi_type: Some(TypeName {
                namespace: XSD.to_owned(),
                name: "string".to_owned(),
            }),
            text: text.into(),
            ..Node::default()
        })
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.0.text
    }
}

impl Element for Raw {
    const TYPE: &'static str = "anyType";
    const POLYMORPHIC: bool = true;

    fn write(&self, name: &str, out: &mut Writer) {
        out.node(name, &self.0);
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        Ok(Self(node.clone()))
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        Self::string("any")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_whatever_their_offset() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2024-02-29T12:00:00.25Z", 1_709_208_000, 250_000_000),
            ("2024-02-29T13:00:00.25+01:00", 1_709_208_000, 250_000_000),
            ("2023-12-31T23:59:60Z", 1_704_067_200, 0),
            ("2024-02-29T12:00:00.123456789Z", 1_709_208_000, 123_456_789),
        ] {
            let expected = UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(moment(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2024-01-01T25:00:00Z",
            "x",
        ] {
            assert_eq!(moment(text), None, "{text}");
        }
        let mut out = Writer::default();
        (UNIX_EPOCH + Duration::from_secs(1_709_208_000)).write("t", &mut out);
        assert_eq!(out.finish(), "<t>2024-02-29T12:00:00Z</t>");
    }
}
