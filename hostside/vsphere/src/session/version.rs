//! The version of the API that is spoken: the newest the server lists that is known here.
//!
//! Source: `/sdk/vimServiceVersions.xml`, which lists the server's version and the older ones it speaks. A
//! SOAPAction with another is refused, or answered without the fields that are newer.

use std::fmt;
use std::time::Duration;

use hyper::Request;

use super::Error;
use crate::soap::{self, Node, VIM};
use crate::transport::{Transport, full};

/// A version of the API, as in `7.0.3.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiVersion {
    text: String,
    numbers: Vec<u32>,
}

impl ApiVersion {
    /// The oldest that has what the driver needs.
    pub const OLDEST: &'static str = "6.5";
    /// The newest that is known.
    pub const NEWEST: &'static str = "9.1";

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let numbers: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        numbers.map(|numbers| Self {
            text: text.to_owned(),
            numbers,
        })
    }

    fn fits(&self) -> bool {
        let bound = |text: &str| Self::parse(text).map(|version| version.numbers);
        let (Some(oldest), Some(newest)) = (bound(Self::OLDEST), bound(Self::NEWEST)) else {
            return false;
        };
        let head = &self.numbers[..self.numbers.len().min(2)];
        self.numbers >= oldest && head <= newest.as_slice()
    }

    /// Whether it is this version or a newer one.
    pub fn is_at_least(&self, version: &[u32]) -> bool {
        self.numbers.as_slice() >= version
    }

    /// The SOAPAction of calls.
    pub fn action(&self) -> String {
        format!("{VIM}/{}", self.text)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The newest in the list that fits.
fn choose(list: &Node) -> Result<ApiVersion, String> {
    let namespace = list
        .children_named("namespace")
        .find(|namespace| namespace.text_of("name").map(str::trim) == Some(VIM));
    let Some(namespace) = namespace else {
        return Err("nothing".into());
    };
    let prior = namespace
        .child("priorVersions")
        .into_iter()
        .flat_map(|prior| prior.children_named("version"));
    let offered: Vec<&str> = namespace
        .children_named("version")
        .chain(prior)
        .map(|node| node.text.trim())
        .collect();
    offered
        .iter()
        .filter_map(|text| ApiVersion::parse(text))
        .filter(ApiVersion::fits)
        .max_by(|a, b| a.numbers.cmp(&b.numbers))
        .ok_or_else(|| offered.join(", "))
}

/// Asks the server what it speaks.
pub(super) async fn negotiate(transport: &Transport) -> Result<ApiVersion, Error> {
    let method = "reading vimServiceVersions.xml";
    let mut request = Request::new(full(""));
    let path = format!("{}/vimServiceVersions.xml", transport.address().path);
    *request.uri_mut() = path.parse().unwrap_or_default();
    let response = transport
        .exchange(request, Duration::from_secs(60))
        .await
        .map_err(|source| Error::Transport { method, source })?;
    let (status, body) = (response.status().as_u16(), response.into_body());
    if status != 200 {
        return Err(Error::Status {
            method,
            status,
            said: String::from_utf8_lossy(&body).chars().take(200).collect(),
        });
    }
    let list = soap::read(&body).map_err(|source| Error::Unreadable { method, source })?;
    choose(&list).map_err(|offered| Error::Version {
        server: transport.address().to_string(),
        offered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(version: &str, prior: &[&str]) -> Node {
        let prior: String = prior
            .iter()
            .map(|version| format!("<version>{version}</version>"))
            .collect();
        let text = format!(
            "<namespaces><namespace><name>urn:vim2</name><version>2.0</version></namespace><namespace>\
             <name>urn:vim25</name><version>{version}</version><priorVersions>{prior}</priorVersions></namespace></namespaces>"
        );
        soap::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        let check = |version, prior: &[&str]| choose(&list(version, prior)).map(|found| found.text);
        assert_eq!(check("8.0.1.0", &["7.0.3.0", "6.7"]), Ok("8.0.1.0".into()));
        assert_eq!(check("12.0", &["9.0.0.0", "8.0.3.0"]), Ok("9.0.0.0".into()));
        assert_eq!(check("6.7.3", &["6.7", "6.5"]), Ok("6.7.3".into()));
        assert_eq!(check("6.0", &["5.5"]), Err("6.0, 5.5".into()));
        assert_eq!(check("12.0", &[]), Err("12.0".into()));
        let version = choose(&list("7.0.3.0", &[])).unwrap();
        assert_eq!(version.action(), "urn:vim25/7.0.3.0");
        assert!(version.is_at_least(&[6, 7]) && !version.is_at_least(&[8]));
    }
}
