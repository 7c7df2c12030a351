//! Names of images: where to import one from ([`Source`]) and what it is called in the store
//! ([`Name`]).
//!
//! The grammar of names is that of the distribution project's `reference` package, which Docker uses:
//! `[host[:port]/]component[/component...][:tag][@digest]`, at most 255 bytes before the tag. There is no
//! default host: `busybox` and `sample/busybox` are names of this store and of nowhere else. The grammar
//! of transports is that of `containers-transports(5)`; a path ends at its first colon.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The tag of a name that has none.
pub const DEFAULT_TAG: &str = "latest";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {what}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// An image's name: a repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Name {
    /// The part before tag and digest.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if it has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name with [`DEFAULT_TAG`] if it has neither tag nor digest.
    pub fn tagged(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Name {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |what| ReferenceError {
            text: text.to_owned(),
            what,
        };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| wrong("after @ must come sha256: and 64 hexadecimal digits"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon in front of a slash belongs to a port.
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong(
                "a tag has up to 128 letters, digits, `_`, `.` and `-`, and starts with neither of the last two",
            ));
        }
        if repository.len() > NAME_MAX {
            return Err(wrong("the name is longer than 255 characters"));
        }
        let mut components = repository.split('/').peekable();
        let first = components.peek().copied().unwrap_or_default();
        let has_host = repository.contains('/')
            && (first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(|c| c.is_ascii_uppercase()));
        if has_host {
            if !is_host(first) {
                return Err(wrong(
                    "the registry's host is not a host name with an optional port",
                ));
            }
            components.next();
        }
        for component in components {
            if component.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(wrong("the name must be in lower case"));
            }
            if !is_component(component) {
                return Err(wrong(
                    "a name has lower-case letters and digits, separated by `.`, `_`, `__`, `-` or `/`",
                ));
            }
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_MAX
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// `[a-z0-9]+` separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(plain) || !component.ends_with(plain) {
        return false;
    }
    component.split(plain).all(|between| {
        matches!(between, "" | "." | "_" | "__") || between.chars().all(|c| c == '-')
    })
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, after)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                return after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        label.starts_with(plain)
            && label.ends_with(plain)
            && label.chars().all(|c| plain(c) || c == '-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit())
}

/// What to take out of a docker archive that has several images.
pub type ArchiveName = Option<Name>;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:ROOTFS`: a directory that is the image's root.
    Directory(PathBuf),
    /// `oci:DIR[:TAG]`: an OCI image layout.
    Oci {
        /// The layout's directory.
        path: PathBuf,
        /// Its `org.opencontainers.image.ref.name`; needed if it has several images.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: a tar of an OCI image layout, possibly compressed.
    OciArchive {
        /// The archive.
        path: PathBuf,
        /// As for a layout.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME]`: what `docker save` writes, possibly compressed.
    DockerArchive {
        /// The archive.
        path: PathBuf,
        /// One of its `RepoTags`; needed if it has several images.
        name: ArchiveName,
    },
    /// `docker://NAME`: an image in a registry.
    Registry(Name),
}

/// What a user calls an image: something to import, or something in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `transport:...`.
    Source(Source),
    /// A name, or an image id or the start of one: [`crate::store::Store::inspect`] finds out.
    Stored(String),
}

impl FromStr for Source {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |what| ReferenceError {
            text: text.to_owned(),
            what,
        };
        let (transport, rest) = text
            .split_once(':')
            .ok_or(wrong("it has no transport such as oci: or dir:"))?;
        let path = |path: &str| {
            if path.is_empty() {
                Err(wrong("it has no path"))
            } else {
                Ok(PathBuf::from(path))
            }
        };
        let split = || match rest.split_once(':') {
            Some((_, "")) => Err(wrong("nothing comes after the last colon")),
            Some((before, after)) => Ok((path(before)?, Some(after))),
            None => Ok((path(rest)?, None)),
        };
        match transport {
            "dir" => Ok(Self::Directory(path(rest)?)),
            "oci" => split().map(|(path, tag)| Self::Oci {
                path,
                tag: tag.map(str::to_owned),
            }),
            "oci-archive" => split().map(|(path, tag)| Self::OciArchive {
                path,
                tag: tag.map(str::to_owned),
            }),
            "docker-archive" => {
                let (path, name) = split()?;
                let name = name
                    .map(|name| name.parse().map(Name::tagged))
                    .transpose()?;
                Ok(Self::DockerArchive { path, name })
            }
            "docker" => match rest.strip_prefix("//") {
                Some(name) => Ok(Self::Registry(name.parse::<Name>()?.tagged())),
                None => Err(wrong("after docker: must come // and a name")),
            },
            _ => Err(wrong(
                "its transport is none of dir:, oci:, oci-archive:, docker-archive: and docker://",
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with =
            |f: &mut fmt::Formatter<'_>, transport: &str, path: &PathBuf, after: Option<String>| {
                write!(f, "{transport}:{}", path.display())?;
                after.map_or(Ok(()), |after| write!(f, ":{after}"))
            };
        match self {
            Self::Directory(path) => with(f, "dir", path, None),
            Self::Oci { path, tag } => with(f, "oci", path, tag.clone()),
            Self::OciArchive { path, tag } => with(f, "oci-archive", path, tag.clone()),
            Self::DockerArchive { path, name } => with(
                f,
                "docker-archive",
                path,
                name.as_ref().map(Name::to_string),
            ),
            Self::Registry(name) => write!(f, "docker://{name}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let transports = [
            "dir:",
            "oci:",
            "oci-archive:",
            "docker-archive:",
            "docker://",
        ];
        if transports
            .iter()
            .any(|transport| text.starts_with(transport))
        {
            return text.parse().map(Self::Source);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let id = (1..=64).contains(&digits.len())
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !id {
            text.parse::<Name>()?;
        }
        Ok(Self::Stored(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_grammar() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let long = "a".repeat(128);
        for (text, repository, tag) in [
            ("busybox", "busybox", None),
            ("sample/busybox", "sample/busybox", None),
            ("busybox:1.36", "busybox", Some("1.36")),
            ("a.b/c", "a.b/c", None),
            ("localhost/x", "localhost/x", None),
            ("host:5000/x", "host:5000/x", None),
            ("host:5000/x/y:tag", "host:5000/x/y", Some("tag")),
            ("Host.Example:1/x", "Host.Example:1/x", None),
            ("[2001:db8::1]:5000/x:y", "[2001:db8::1]:5000/x", Some("y")),
            ("a__b/c-d/e---f/g.h/i_j", "a__b/c-d/e---f/g.h/i_j", None),
            ("x:_T.a-G", "x", Some("_T.a-G")),
            (&format!("x:{long}"), "x", Some(&*long)),
        ] {
            for end in ["", "@"] {
                let text = if end.is_empty() {
                    text.to_owned()
                } else {
                    format!("{text}@{digest}")
                };
                let name: Name = text.parse().unwrap();
                assert_eq!((name.repository(), name.tag()), (repository, tag), "{text}");
                assert_eq!(name.digest().is_some(), !end.is_empty());
                assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "sample/Busybox",
            "a:",
            "a:b:c",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a:.b",
            "a:-b",
            "a b",
            "a@",
            "a@sha256:00",
            "a@md5:00",
            "@sha256:00",
            "x.y:port/z",
            "x.y:123456/z",
            "-x.y/z",
            "[::g]/x",
            "[::1/x",
            "a\0",
            "\u{e9}",
            "../a",
            "a/../b",
            ".",
            "..",
            &long,
            &format!("a:{}", &long[..129]),
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_name_without_tag_and_digest_gets_the_default_tag() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, expected) in [
            ("a/b", "a/b:latest"),
            ("a:1", "a:1"),
            (&format!("a@{digest}"), &format!("a@{digest}")),
        ] {
            assert_eq!(text.parse::<Name>().unwrap().tagged().to_string(), expected);
        }
    }

    #[test]
    fn sources_have_transports() {
        let path = |path: &str| PathBuf::from(path);
        let text = |text: &str| Some(text.to_owned());
        for (source, expected) in [
            ("dir:/a:b", Source::Directory(path("/a:b"))),
            (
                "oci:a/b",
                Source::Oci {
                    path: path("a/b"),
                    tag: None,
                },
            ),
            (
                "oci:/a:1.0",
                Source::Oci {
                    path: path("/a"),
                    tag: text("1.0"),
                },
            ),
            (
                "oci:/a:host/x:1",
                Source::Oci {
                    path: path("/a"),
                    tag: text("host/x:1"),
                },
            ),
            (
                "oci-archive:a.tar:t",
                Source::OciArchive {
                    path: path("a.tar"),
                    tag: text("t"),
                },
            ),
            (
                "docker-archive:a.tar",
                Source::DockerArchive {
                    path: path("a.tar"),
                    name: None,
                },
            ),
            (
                "docker-archive:a:x/y",
                Source::DockerArchive {
                    path: path("a"),
                    name: "x/y:latest".parse().ok(),
                },
            ),
            (
                "docker://x/y",
                Source::Registry("x/y:latest".parse().unwrap()),
            ),
        ] {
            let parsed: Source = source.parse().unwrap();
            assert_eq!(parsed, expected, "{source}");
            assert_eq!(parsed.to_string().parse::<Source>().unwrap(), expected);
            assert_eq!(
                source.parse::<Reference>().unwrap(),
                Reference::Source(expected)
            );
        }
        for source in [
            "",
            "oci",
            "oci:",
            "oci:a:",
            "oci::b",
            "dir:",
            "docker:x",
            "docker://X",
            "ftp:x",
            "docker-archive:a:X",
        ] {
            assert!(source.parse::<Source>().is_err(), "{source}");
        }
    }

    #[test]
    fn what_has_no_transport_is_a_name_or_an_id() {
        for text in [
            "busybox",
            "sample/busybox:1",
            "abc123",
            &format!("sha256:{}", "a".repeat(64)),
            "host:5000/x",
        ] {
            assert_eq!(
                text.parse::<Reference>().unwrap(),
                Reference::Stored(text.to_owned())
            );
        }
        for text in ["", "Upper", "oci:", "a b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
