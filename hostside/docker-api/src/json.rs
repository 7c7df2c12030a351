//! Objects as Go's JSON writes and reads them: names with capitals, `null` for what is empty, and every
//! member may be missing.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `null` as the default.
///
/// # Errors
/// It is neither `null` nor a `T`.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// An object of the Engine API whose members may all be missing or `null`.
macro_rules! engine_object {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(deserialize_with = "crate::json::or_default")]
                pub $field: $kind,
            )*
        }
    };
}
pub(crate) use engine_object;

/// `{}`: Go's way to write a set is a map to these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Empty;

impl Serialize for Empty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(std::iter::empty::<((), ())>())
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Anything says that the key is there, `null` too.
        serde::de::IgnoredAny::deserialize(deserializer)?;
        Ok(Self)
    }
}

/// Words of a command: a list, or one text that is one word (the Engine's `strslice.StrSlice`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            List(Vec<String>),
            One(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::List(list) => list,
            Either::One(word) if word.is_empty() => Vec::new(),
            Either::One(word) => vec![word],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    engine_object! {
        /// For the test.
        Sample {
            /// Some.
            some_words: Option<Words>,
            /// Set.
            set: BTreeMap<String, Empty>,
            /// Number.
            number: i64,
        }
    }

    #[test]
    fn null_is_what_is_missing() {
        let read = |text: &str| serde_json::from_str::<Sample>(text).unwrap();
        assert_eq!(read("{}"), Sample::default());
        assert_eq!(
            read(r#"{"SomeWords":null,"Set":null,"Number":null,"Other":1}"#),
            Sample::default()
        );
        let full = read(r#"{"SomeWords":"true","Set":{"a":null,"b":{}},"Number":3}"#);
        assert_eq!(full.some_words, Some(Words(vec!["true".into()])));
        assert_eq!(full.set.len(), 2);
        assert_eq!(
            serde_json::to_string(&full).unwrap(),
            r#"{"SomeWords":["true"],"Set":{"a":{},"b":{}},"Number":3}"#
        );
        assert_eq!(read(r#"{"SomeWords":[]}"#).some_words, Some(Words(vec![])));
    }
}
