//! `--add-host HOST:IP`.

use std::net::IpAddr;
use std::str::FromStr;

/// A line of /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Where it leads.
    pub address: HostAddress,
}

/// An address, or the machine that `vch run` runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// This address.
    Ip(IpAddr),
    /// Docker's `host-gateway`.
    Gateway,
}

impl FromStr for ExtraHost {
    type Err = String;

    /// `HOST:IP` or `HOST=IP`; an IPv6 address may stand in brackets.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("bad format for add-host: \"{text}\" (write it as HOST:IP)");
        let (name, address) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .ok_or_else(refuse)?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(refuse());
        }
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let address = if bare == "host-gateway" {
            HostAddress::Gateway
        } else {
            let ip = bare
                .parse()
                .map_err(|_| format!("invalid IP address in add-host: \"{address}\""))?;
            HostAddress::Ip(ip)
        };
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_and_an_address() {
        let cases = [
            ("db:10.0.0.1", Some(("db", "10.0.0.1"))),
            ("db=10.0.0.1", Some(("db", "10.0.0.1"))),
            ("db:::1", Some(("db", "::1"))),
            ("db:[::1]", Some(("db", "::1"))),
            ("db", None),
            (":1.2.3.4", None),
            ("a b:1.2.3.4", None),
            ("db:nowhere", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(name, ip)| ExtraHost {
                name: name.to_owned(),
                address: HostAddress::Ip(ip.parse().unwrap()),
            });
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        let gateway: ExtraHost = "up:host-gateway".parse().unwrap();
        assert_eq!(gateway.address, HostAddress::Gateway);
    }
}
