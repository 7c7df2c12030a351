//! The query of a request, read as the Engine reads it (`api/server/httputils/form.go` of the Engine).

use std::convert::Infallible;
use std::time::SystemTime;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::errors::ApiError;
use crate::filters::Filters;
use crate::time;

/// The parameters in the order they were given.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    /// What is after the question mark.
    pub fn parse(text: &str) -> Self {
        Self(
            form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// The first value of a parameter; empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.values(name).next().unwrap_or_default()
    }

    /// All values of a parameter.
    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let name = name.to_owned();
        self.0
            .iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether the parameter is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Yes, unless it is missing or says no.
    pub fn flag(&self, name: &str) -> bool {
        let value = self.text(name).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The same with another answer for a missing one.
    pub fn flag_or(&self, name: &str, missing: bool) -> bool {
        if self.has(name) {
            self.flag(name)
        } else {
            missing
        }
    }

    /// A number; `None` if it is missing or empty.
    ///
    /// # Errors
    /// 400: it is no number.
    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| ApiError::invalid(format!("invalid {name}: {text:?} is no number")))
    }

    /// A moment; `None` if it is missing, empty or 0.
    ///
    /// # Errors
    /// 400: it is none.
    pub fn moment(&self, name: &str) -> Result<Option<SystemTime>, ApiError> {
        match self.text(name) {
            "" | "0" => Ok(None),
            text => Ok(Some(time::parse(text, SystemTime::now())?)),
        }
    }

    /// The filters.
    ///
    /// # Errors
    /// 400: they are malformed.
    pub fn filters(&self) -> Result<Filters, ApiError> {
        Filters::parse(self.text("filters"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_yes_unless_it_says_no() {
        let cases = [
            ("", false),
            ("all", false),
            ("all=", false),
            ("all=0", false),
            ("all=False", false),
            ("all=none", false),
            ("all=1", true),
            ("all=true", true),
            ("all=yes", true),
        ];
        for (query, expected) in cases {
            assert_eq!(Query::parse(query).flag("all"), expected, "{query:?}");
        }
        assert!(Query::parse("").flag_or("pause", true));
        assert!(!Query::parse("pause=0").flag_or("pause", true));
    }

    #[test]
    fn a_number_is_one_or_missing() {
        assert_eq!(Query::parse("t=5").number("t"), Ok(Some(5)));
        assert_eq!(Query::parse("t=-1").number("t"), Ok(Some(-1)));
        assert_eq!(Query::parse("t=").number("t"), Ok(None));
        assert!(Query::parse("t=x").number("t").is_err());
    }

    #[test]
    fn values_are_decoded_and_kept_in_order() {
        let query = Query::parse("changes=CMD+a%20b&changes=ENV%20A=1&x");
        assert_eq!(
            query.values("changes").collect::<Vec<_>>(),
            ["CMD a b", "ENV A=1"]
        );
        assert!(query.has("x") && !query.has("y"));
    }
}
