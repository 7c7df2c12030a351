//! The order of elements, compared with the API's published types: those of Debian's package
//! golang-github-vmware-govmomi-dev, which are generated from VMware's WSDL.
//!
//! Each type here is written out in full, and its elements must stand in the published order; each
//! published field without which a value is incomplete must be there, and each must be of the published
//! type, occur as often, and say its type where another may stand in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use super::{DataObject, FieldShape};
use crate::soap::{self, Body, Cardinality, Writer};

const PUBLISHED: &str = "/usr/share/gocode/src/github.com/vmware/govmomi/vim25/types/types.go";

/// A type of ours, with one of it written out.
pub(crate) struct Sample {
    name: &'static str,
    fields: &'static [FieldShape],
    written: Vec<String>,
}

impl Sample {
    pub(crate) fn of<T: DataObject>(value: &T) -> Self {
        let text = soap::envelope("X", |out: &mut Writer| value.write_fields(out));
        let Body::Answer(node) = soap::open(text.as_bytes()).expect("what is written can be read")
        else {
            panic!("{text}");
        };
        let mut written: Vec<String> = node.children.into_iter().map(|child| child.name).collect();
        written.dedup();
        Self {
            name: T::NAME,
            fields: T::FIELDS,
            written,
        }
    }
}

#[derive(Debug, Clone)]
struct Published {
    name: String,
    go: String,
    omitted_when_empty: bool,
    says_type: bool,
}

#[derive(Debug, Default)]
struct Types {
    fields: BTreeMap<String, (Option<String>, Vec<Published>)>,
    words: BTreeSet<String>,
}

impl Types {
    fn parse(text: &str) -> Self {
        let mut types = Self::default();
        let mut open: Option<String> = None;
        for line in text.lines() {
            if let Some(name) = line
                .strip_prefix("type ")
                .and_then(|rest| rest.strip_suffix(" struct {"))
            {
                types.fields.insert(name.to_owned(), (None, Vec::new()));
                open = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("type ") {
                if let Some(name) = rest.strip_suffix(" string") {
                    types.words.insert(name.to_owned());
                }
            } else if line == "}" {
                open = None;
            } else if let Some((base, fields)) =
                open.as_ref().and_then(|name| types.fields.get_mut(name))
            {
                let parts: Vec<&str> = line.split_whitespace().collect();
                match parts.as_slice() {
                    [embedded] => *base = Some((*embedded).to_owned()),
                    [_, go, tag] if tag.starts_with("`xml:\"") => {
                        let tag = tag.trim_start_matches("`xml:\"").trim_end_matches("\"`");
                        let mut words = tag.split(',');
                        let name = words.next().unwrap_or_default().to_owned();
                        let words: Vec<&str> = words.collect();
                        if !words.contains(&"attr") && !words.contains(&"chardata") {
                            fields.push(Published {
                                name,
                                go: (*go).to_owned(),
                                omitted_when_empty: words.contains(&"omitempty"),
                                says_type: words.contains(&"typeattr"),
                            });
                        }
                    }
                    _ => {}
                }
            }
        }
        types
    }

    fn all_fields(&self, name: &str) -> Option<Vec<Published>> {
        let (base, own) = self.fields.get(name)?;
        let mut all = base
            .as_deref()
            .and_then(|base| self.all_fields(base))
            .unwrap_or_default();
        all.extend(own.iter().cloned());
        Some(all)
    }

    /// What is wrong with a type of ours.
    fn compare(&self, sample: &Sample, published: &str) -> Vec<String> {
        let Some(all) = self.all_fields(published) else {
            return vec![format!("{}: no published type {published}", sample.name)];
        };
        let mut wrong = Vec::new();
        let ours: Vec<&str> = sample.fields.iter().map(|field| field.name).collect();
        if sample.written != ours {
            wrong.push(format!(
                "{}: written {:?}, declared {ours:?}",
                sample.name, sample.written
            ));
        }
        let order: Vec<&str> = all
            .iter()
            .map(|field| field.name.as_str())
            .filter(|name| sample.written.iter().any(|own| own == name))
            .collect();
        if sample.written != order {
            wrong.push(format!(
                "{}: written {:?}, published order {order:?}",
                sample.name, sample.written
            ));
        }
        for field in &all {
            let found = sample.fields.iter().find(|own| own.name == field.name);
            let required = !field.omitted_when_empty && !field.go.starts_with('*');
            match found {
                // Lists may be empty; what only a server writes may be left out of what is only read.
                None if required
                    && !field.go.starts_with("[]")
                    && !READ_ONLY.contains(&sample.name) =>
                {
                    wrong.push(format!("{}: {} is missing", sample.name, field.name));
                }
                Some(own) => wrong.extend(self.field(sample.name, own, field)),
                None => {}
            }
        }
        wrong
    }

    fn field(&self, of: &str, own: &FieldShape, field: &Published) -> Option<String> {
        let many = field.go.starts_with("[]");
        let optional = field.go.starts_with('*') || field.omitted_when_empty;
        let bare = field.go.trim_start_matches(['*', '[', ']']);
        let expected = match bare {
            "string" => "string",
            "int32" => "int",
            "int64" => "long",
            "bool" => "boolean",
            "time.Time" => "dateTime",
            "AnyType" | "BaseMethodFault" | "BaseEvent" => "anyType",
            // A description is carried as it came.
            "BaseDescription" => "anyType",
            name => name
                .strip_prefix("Base")
                .filter(|name| self.fields.contains_key(*name))
                .unwrap_or(name),
        };
        let is_word =
            expected == own.type_name || (own.type_name == "string" && self.words.contains(bare));
        if !is_word {
            return Some(format!(
                "{of}.{}: {}, published {}",
                own.name, own.type_name, field.go
            ));
        }
        if many != (own.cardinality == Cardinality::Many) {
            return Some(format!(
                "{of}.{}: {:?}, published {}",
                own.name, own.cardinality, field.go
            ));
        }
        // What must be there may be an Option of ours where no value stands for "none"; not the reverse.
        if !many && optional && own.cardinality == Cardinality::One && !READ_ONLY.contains(&of) {
            return Some(format!(
                "{of}.{}: always written, published as optional",
                own.name
            ));
        }
        if field.says_type != own.polymorphic {
            return Some(format!(
                "{of}.{}: says its type: {}, published {}",
                own.name, own.polymorphic, field.says_type
            ));
        }
        None
    }
}

/// Types that are only read: what the driver does not look at is not in them.
const READ_ONLY: &[&str] = &[
    "ServiceContent",
    "AboutInfo",
    "UserSession",
    "HttpNfcLeaseInfo",
    "HttpNfcLeaseDeviceUrl",
];

fn published() -> Option<Types> {
    match std::fs::read_to_string(PUBLISHED) {
        Ok(text) => Some(Types::parse(&text)),
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: types::published: golang-github-vmware-govmomi-dev is not installed ({error})"
            );
            None
        }
    }
}

#[test]
fn elements_stand_in_the_published_order() {
    let Some(types) = published() else { return };
    let mut wrong = Vec::new();
    let samples: Vec<Sample> = super::data::samples()
        .into_iter()
        .chain(super::devices::samples())
        .collect();
    assert!(samples.len() > 50, "{} types", samples.len());
    for sample in &samples {
        wrong.extend(types.compare(sample, sample.name));
    }
    let methods = super::methods::method_samples();
    assert_eq!(methods.len(), super::METHODS.len());
    for sample in &methods {
        let request = format!("{}RequestType", sample.name.trim_end_matches("_Task"));
        wrong.extend(
            types
                .compare(sample, &request)
                .into_iter()
                .map(|line| line.replace(".this", "._this")),
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_comparison_finds_what_is_wrong() {
    let types = Types::parse(
        "type Base struct {\n\tDynamicData\n\n\tKey int32 `xml:\"key\"`\n}\n\ntype Thing struct {\n\tBase\n\n\tOne string `xml:\"one\"`\n\
         \tTwo *bool `xml:\"two\"`\n\tThree string `xml:\"three,omitempty\"`\n\tFour BaseBase `xml:\"four,omitempty,typeattr\"`\n}\n\
         type DynamicData struct {\n}\n",
    );
    const fn field(
        name: &'static str,
        type_name: &'static str,
        cardinality: Cardinality,
    ) -> FieldShape {
        FieldShape {
            name,
            type_name,
            cardinality,
            polymorphic: false,
        }
    }
    const KEY: FieldShape = field("key", "int", Cardinality::One);
    const ONE: FieldShape = field("one", "string", Cardinality::One);
    const TWO: FieldShape = field("two", "boolean", Cardinality::Optional);
    const THREE: FieldShape = field("three", "string", Cardinality::One);
    const FOUR: FieldShape = field("four", "Base", Cardinality::Optional);
    const LONG: FieldShape = field("one", "long", Cardinality::One);
    let check = |fields: &'static [FieldShape]| {
        let written = fields.iter().map(|field| field.name.to_owned()).collect();
        types.compare(
            &Sample {
                name: "Thing",
                fields,
                written,
            },
            "Thing",
        )
    };
    assert_eq!(check(&[KEY, ONE, TWO]), Vec::<String>::new());
    for (fields, expected) in [
        (&[ONE, KEY][..], "published order"),
        (&[KEY], "one is missing"),
        (&[KEY, ONE, THREE], "always written"),
        (&[KEY, ONE, FOUR], "says its type"),
        (&[KEY, LONG], "published string"),
    ] {
        let wrong = check(fields);
        assert!(
            wrong.iter().any(|line| line.contains(expected)),
            "{wrong:?} has no {expected}"
        );
    }
}
