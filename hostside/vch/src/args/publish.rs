//! `-p [[IP:]HOST[-END]:]CONTAINER[-END][/tcp|/udp]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// One `-p`: as many ports as its ranges are long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub address: IpAddr,
    /// First port of the host; `None` is any free one for each.
    pub host: Option<u16>,
    /// First port of the container.
    pub container: u16,
    /// How many ports follow one another.
    pub count: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl Publish {
    /// Each port of the host, where it was given, and the container's it leads to.
    pub fn ports(&self) -> impl Iterator<Item = (Option<SocketAddr>, u16)> + '_ {
        (0..self.count).map(|step| {
            let host = self
                .host
                .map(|first| SocketAddr::new(self.address, first + step));
            (host, self.container + step)
        })
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| format!("invalid publish specification '{text}': {why}");
        let (rest, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((rest, "tcp")) => (rest, Transport::Tcp),
            Some((rest, "udp")) => (rest, Transport::Udp),
            Some((_, "sctp")) => return Err(refuse("SCTP is not supported")),
            Some((_, other)) => return Err(refuse(&format!("no such protocol: {other}"))),
        };
        let (rest, container) = match rest.rsplit_once(':') {
            Some((rest, container)) => (Some(rest), container),
            None => (None, rest),
        };
        let (address, host) = match rest {
            None => ("", ""),
            // An address in brackets, or one before the last colon.
            Some(rest) => match rest.rsplit_once(':') {
                Some((address, host)) if !rest.ends_with(']') => (address, host),
                _ if rest.contains('.') || rest.starts_with('[') => (rest, ""),
                _ => ("", rest),
            },
        };
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let address = match bare {
            "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            bare => bare
                .parse()
                .map_err(|_| refuse(&format!("no such IP address: {bare}")))?,
        };
        let (container, container_count) =
            range(container).ok_or_else(|| refuse("invalid container port"))?;
        let (host, count) = if host.is_empty() {
            (None, container_count)
        } else {
            let (host, count) = range(host).ok_or_else(|| refuse("invalid host port"))?;
            // Docker picks one of a host range for one container port; the first is one of them.
            if count != container_count && container_count != 1 {
                return Err(refuse("the two ranges have different lengths"));
            }
            (Some(host), container_count)
        };
        Ok(Self {
            address,
            host,
            container,
            count,
            transport,
        })
    }
}

/// `FIRST[-LAST]` as first and count.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse::<u16>().ok())
            .flatten()
            .filter(|port| *port > 0)
    };
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then(|| (first, (last - first).saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_as_docker_writes_them() {
        type Expected = (&'static str, Option<u16>, u16, u16, Transport);
        let cases: &[(&str, Option<Expected>)] = &[
            ("80", Some(("0.0.0.0", None, 80, 1, Transport::Tcp))),
            ("80/udp", Some(("0.0.0.0", None, 80, 1, Transport::Udp))),
            (
                "8080:80",
                Some(("0.0.0.0", Some(8080), 80, 1, Transport::Tcp)),
            ),
            (
                "127.0.0.1:8080:80/tcp",
                Some(("127.0.0.1", Some(8080), 80, 1, Transport::Tcp)),
            ),
            (
                "127.0.0.1::80",
                Some(("127.0.0.1", None, 80, 1, Transport::Tcp)),
            ),
            (
                "[::1]:8080:80",
                Some(("::1", Some(8080), 80, 1, Transport::Tcp)),
            ),
            ("[::1]::80", Some(("::1", None, 80, 1, Transport::Tcp))),
            (
                "8000-8002:9000-9002",
                Some(("0.0.0.0", Some(8000), 9000, 3, Transport::Tcp)),
            ),
            (
                "8000-8002:80",
                Some(("0.0.0.0", Some(8000), 80, 1, Transport::Tcp)),
            ),
            ("8000-8001:9000-9002", None),
            ("8080:", None),
            ("0:80", None),
            ("80-70", None),
            ("65536", None),
            ("+80", None),
            ("80/sctp", None),
            ("80/icmp", None),
            ("host:1:2", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(address, host, container, count, transport)| Publish {
                address: address.parse().unwrap(),
                host,
                container,
                count,
                transport,
            });
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        let range: Publish = "65534-65535:1-2".parse().unwrap();
        assert_eq!(
            range.ports().collect::<Vec<_>>(),
            [
                (Some("0.0.0.0:65534".parse().unwrap()), 1),
                (Some("0.0.0.0:65535".parse().unwrap()), 2)
            ]
        );
    }
}
