//! How containers and execs are called: 64 hexadecimal digits, a name, or a prefix of the former.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 32 random bytes, written as 64 lower-case hexadecimal digits: what Docker calls a full id.
macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// A new one.
            ///
            /// # Errors
            /// The kernel's random source fails, as `getrandom(2)` may early in boot.
            pub fn random() -> std::io::Result<Self> {
                random_bytes().map(Self)
            }

            /// The first 12 digits, which is how listings show it.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..6])
            }

            /// Its bytes, in the order they are written.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = NotAnIdentity;

            fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
                let mut bytes = [0; 32];
                let lower = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
                match hex::decode_to_slice(text, &mut bytes) {
                    Ok(()) if lower => Ok(Self(bytes)),
                    _ => Err(NotAnIdentity(text.chars().take(80).collect())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAnIdentity;
            fn try_from(text: String) -> Result<Self, NotAnIdentity> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

identity! {
    /// A container's identity.
    #[derive(Serialize, Deserialize)]
    #[serde(try_from = "String", into = "String")]
    ContainerId
}
identity! {
    /// An exec's identity.
    #[derive(Serialize, Deserialize)]
    #[serde(try_from = "String", into = "String")]
    ExecId
}

/// What was given is not a full id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 64 lower-case hexadecimal digits")]
pub struct NotAnIdentity(String);

/// `N` bytes from the kernel.
///
/// # Errors
/// Its random source fails, as `getrandom(2)` may early in boot.
pub fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// A container's name: what `docker run --name` takes (`[a-zA-Z0-9][a-zA-Z0-9_.-]+`), at most 64 bytes so
/// that a virtual machine can be called so everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

/// What was given cannot be a container's name. The wording is Docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
pub struct InvalidName(String);

impl ContainerName {
    /// Longest name, in bytes.
    pub const LONGEST: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let good = (2..=Self::LONGEST).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes[1..]
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.chars().take(128).collect()))
        }
    }
}

impl TryFrom<String> for ContainerName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = ContainerId::random().unwrap();
        assert_eq!(id.to_string().parse::<ContainerId>().unwrap(), id);
        assert_eq!(id.short(), id.to_string()[..12]);
        for text in [
            "",
            "ab",
            &"A".repeat(64),
            &"0".repeat(63),
            &"0".repeat(65),
            &"g".repeat(64),
        ] {
            assert!(text.parse::<ContainerId>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_name_is_what_docker_takes() {
        for name in ["ab", "web-1", "a.b_c", "0a", &"x".repeat(64)] {
            assert!(
                name.parse::<ContainerName>().is_ok(),
                "{name:?} was refused"
            );
        }
        for name in [
            "",
            "a",
            "-a",
            ".a",
            "_a",
            "a b",
            "a/b",
            "ä1",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(name.parse::<ContainerName>().is_err(), "{name:?} was taken");
        }
    }
}
