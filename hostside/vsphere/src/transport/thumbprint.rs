//! Thumbprints: the hash of a certificate, as vSphere's own clients show it.

use std::fmt;
use std::str::FromStr;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The hash of a certificate's DER form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thumbprint {
    /// As vSphere 7 and newer show it.
    Sha256([u8; 32]),
    /// As older ones show it. Finding a second certificate for one is still beyond anybody.
    Sha1([u8; 20]),
}

impl Thumbprint {
    /// The SHA-256 thumbprint of a certificate.
    pub fn sha256(der: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(der).into())
    }

    /// The SHA-1 thumbprint of a certificate.
    pub fn sha1(der: &[u8]) -> Self {
        Self::Sha1(Sha1::digest(der).into())
    }

    /// Whether it is this certificate's.
    pub fn is_of(&self, der: &[u8]) -> bool {
        match self {
            Self::Sha256(_) => *self == Self::sha256(der),
            Self::Sha1(_) => *self == Self::sha1(der),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha1(bytes) => bytes,
        }
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.bytes().iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

/// Text that is no thumbprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no thumbprint: it must be 32 (SHA-256) or 20 (SHA-1) bytes in hexadecimal, with or without colons"
)]
pub struct NotAThumbprint(String);

impl FromStr for Thumbprint {
    type Err = NotAThumbprint;

    fn from_str(text: &str) -> Result<Self, NotAThumbprint> {
        let refuse = || NotAThumbprint(text.chars().take(120).collect());
        let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
        let bytes = hex::decode(digits).map_err(|_| refuse())?;
        if let Ok(bytes) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(Self::Sha256(bytes));
        }
        <[u8; 20]>::try_from(bytes.as_slice())
            .map(Self::Sha1)
            .map_err(|_| refuse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_read_back_as_they_are_shown() {
        for thumbprint in [Thumbprint::sha256(b"x"), Thumbprint::sha1(b"x")] {
            let text = thumbprint.to_string();
            assert_eq!(text.parse(), Ok(thumbprint));
            assert_eq!(text.replace(':', "").to_lowercase().parse(), Ok(thumbprint));
            assert!(thumbprint.is_of(b"x") && !thumbprint.is_of(b"y"));
        }
        assert!(
            Thumbprint::sha1(b"x")
                .to_string()
                .starts_with("11:F6:AD:8E")
        );
        for text in ["", "AA:BB", "zz"] {
            assert!(text.parse::<Thumbprint>().is_err(), "{text:?} was taken");
        }
    }
}
