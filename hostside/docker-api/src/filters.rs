//! The `filters` parameter of listings, prunes and events.
//!
//! Source: Engine API 1.47 and the Engine's `api/types/filters`: a JSON object of lists of values, or, from
//! clients older than 1.22, of objects whose keys are the values.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::errors::ApiError;

/// What is asked for, by key. A key without values asks for nothing in particular.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Set(BTreeMap<String, bool>),
}

impl Filters {
    /// Reads the parameter; an empty one asks for nothing.
    ///
    /// # Errors
    /// 400: it is neither form.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::invalid(format!("invalid filter: {error}")))?;
        let keys = parsed.into_iter().map(|(key, values)| {
            let values = match values {
                Values::List(list) => list.into_iter().collect(),
                Values::Set(set) => set
                    .into_iter()
                    .filter_map(|(value, wanted)| wanted.then_some(value))
                    .collect(),
            };
            (key, values)
        });
        Ok(Self(keys.collect()))
    }

    /// Refuses keys that mean nothing here.
    ///
    /// # Errors
    /// 400: one that is not in `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::invalid(format!("invalid filter '{key}'"))),
            None => Ok(()),
        }
    }

    /// Whether the key was given with a value.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|values| !values.is_empty())
    }

    /// The values of a key.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Whether `source` is one of the values, or none was asked for.
    pub fn exact(&self, key: &str, source: &str) -> bool {
        !self.has(key) || self.values(key).any(|value| value == source)
    }

    /// The same, where a value may also be the beginning of `source`.
    pub fn prefix(&self, key: &str, source: &str) -> bool {
        !self.has(key) || self.values(key).any(|value| source.starts_with(value))
    }

    /// The same, where a value may be a pattern found anywhere in `source`: `^` and `$` bind it to the
    /// ends, `*` and `.*` stand for anything, `.` and `?` for one character.
    pub fn pattern(&self, key: &str, source: &str) -> bool {
        !self.has(key) || self.values(key).any(|value| matches(value, source))
    }

    /// Whether labels hold all that is asked for: `NAME` or `NAME=VALUE`.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).all(|wanted| has_label(wanted, labels))
    }

    /// Whether labels hold none of what is asked for (`label!`).
    pub fn without_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.values(key).any(|wanted| has_label(wanted, labels))
    }

    /// A yes or no.
    ///
    /// # Errors
    /// 400: anything else, or both.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let mut answer = None;
        for value in self.values(key) {
            let value = match value {
                "1" | "true" => true,
                "0" | "false" => false,
                other => {
                    return Err(ApiError::invalid(format!(
                        "invalid filter '{key}=[{other}]'"
                    )));
                }
            };
            if answer.is_some_and(|before| before != value) {
                return Err(ApiError::invalid(format!(
                    "invalid filter '{key}': it is both true and false"
                )));
            }
            answer = Some(value);
        }
        Ok(answer)
    }
}

fn has_label(wanted: &str, labels: &BTreeMap<String, String>) -> bool {
    match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// The part of regular expressions people write into `--filter name=`.
fn matches(pattern: &str, source: &str) -> bool {
    let (start, pattern) = match pattern.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let (end, pattern) = match pattern.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut escaped = false;
    for c in pattern.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '.' if !escaped => parts.push(Part::Any),
            '*' if !escaped => match parts.pop() {
                Some(Part::Any | Part::Many) | None => parts.push(Part::Many),
                Some(Part::Just(c) | Part::Repeated(c)) => parts.push(Part::Repeated(c)),
            },
            c => parts.push(Part::Just(c)),
        }
        escaped = false;
    }
    if !start {
        parts.insert(0, Part::Many);
    }
    if !end {
        parts.push(Part::Many);
    }
    let source: Vec<char> = source.chars().collect();
    // Which places of the pattern can be reached after each character: linear in both.
    let mut reached = vec![false; parts.len() + 1];
    reached[0] = true;
    skip(&parts, &mut reached);
    for c in source {
        let mut next = vec![false; parts.len() + 1];
        for (place, part) in parts
            .iter()
            .enumerate()
            .filter(|(place, _)| reached[*place])
        {
            match part {
                Part::Many => next[place] = true,
                Part::Repeated(wanted) if *wanted == c => next[place] = true,
                Part::Any => next[place + 1] = true,
                Part::Just(wanted) if *wanted == c => next[place + 1] = true,
                Part::Repeated(_) | Part::Just(_) => {}
            }
        }
        skip(&parts, &mut next);
        reached = next;
    }
    reached[parts.len()]
}

enum Part {
    Just(char),
    Any,
    Many,
    Repeated(char),
}

/// What may stand for nothing is passed.
fn skip(parts: &[Part], reached: &mut [bool]) {
    for (place, part) in parts.iter().enumerate() {
        if reached[place] && matches!(part, Part::Many | Part::Repeated(_)) {
            reached[place + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_filters_are_read() {
        let cases = [
            (r#"{"name":["a","b"]}"#, true),
            (r#"{"name":{"a":true,"b":true,"c":false}}"#, true),
            (r#"{"name":"a"}"#, false),
            (r#"["a"]"#, false),
            ("{", false),
        ];
        for (text, good) in cases {
            let filters = Filters::parse(text).ok();
            assert_eq!(filters.is_some(), good, "{text}");
            if let Some(filters) = filters {
                assert_eq!(filters.values("name").collect::<Vec<_>>(), ["a", "b"]);
            }
        }
        assert_eq!(Filters::parse("").unwrap(), Filters::default());
        assert!(
            Filters::parse(r#"{"x":["1"]}"#)
                .unwrap()
                .only(&["y"])
                .is_err()
        );
    }

    #[test]
    fn a_name_may_be_a_pattern() {
        let cases = [
            ("web", "my-web-1", true),
            ("^web", "my-web-1", false),
            ("^my", "my-web-1", true),
            ("1$", "my-web-1", true),
            ("^web$", "web", true),
            ("^web$", "webs", false),
            ("w.b", "web", true),
            ("^w.*1$", "web-1", true),
            ("^wex*b$", "web", true),
            ("^we\\.b$", "we.b", true),
            ("^we\\.b$", "weab", false),
            ("*", "anything", true),
            ("", "anything", true),
        ];
        for (pattern, source, expected) in cases {
            assert_eq!(matches(pattern, source), expected, "{pattern} {source}");
        }
    }

    #[test]
    fn labels_are_wanted_all_and_unwanted_any() {
        let labels = BTreeMap::from([
            ("a".to_owned(), "1".to_owned()),
            ("b".into(), String::new()),
        ]);
        let cases = [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=1","b"]}"#, true),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["a","c"]}"#, false),
            ("{}", true),
        ];
        for (text, expected) in cases {
            let filters = Filters::parse(text).unwrap();
            assert_eq!(filters.labels("label", &labels), expected, "{text}");
        }
        let without = Filters::parse(r#"{"label!":["b"]}"#).unwrap();
        assert!(!without.without_labels("label!", &labels));
    }

    #[test]
    fn a_boolean_is_one_of_two() {
        let read = |text: &str| Filters::parse(text).unwrap().boolean("dangling").ok();
        assert_eq!(read(r#"{"dangling":["true"]}"#), Some(Some(true)));
        assert_eq!(read(r#"{"dangling":["0"]}"#), Some(Some(false)));
        assert_eq!(read("{}"), Some(None));
        assert_eq!(read(r#"{"dangling":["maybe"]}"#), None);
        assert_eq!(read(r#"{"dangling":["1","0"]}"#), None);
    }
}
