//! Ports that a container listens on and where they are reached from outside.
//!
//! Source: Engine API 1.47 (`PortBindings`, `PublishAllPorts`, `NetworkSettings.Ports`) and
//! docker/go-connections `nat` for the grammar.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portlayer::Container;
use portlayer::spec::{Protocol, PublishSpec};
use serde::Serialize;

use crate::containers::host_config::{HostConfig, PortBinding};
use crate::errors::ApiError;
use crate::json::Empty;

fn bad(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid port specification: {text:?}"))
}

fn protocol(name: &str) -> Result<Protocol, ApiError> {
    match name.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Err(ApiError::unsupported("publishing SCTP ports")),
        _ => Err(ApiError::invalid(format!("invalid proto: {name}"))),
    }
}

/// What a protocol is called in the API.
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// `PORT` or `FIRST-LAST`.
///
/// # Errors
/// 400.
pub fn range(text: &str) -> Result<(u16, u16), ApiError> {
    let number = |text: &str| text.parse::<u16>().ok();
    let range = match text.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)),
        None => number(text).map(|port| (port, port)),
    };
    range
        .filter(|(first, last)| first <= last)
        .ok_or_else(|| bad(text))
}

/// `PORT[-LAST][/PROTOCOL]`.
///
/// # Errors
/// 400, or 501 for SCTP.
pub fn port(text: &str) -> Result<((u16, u16), Protocol), ApiError> {
    let (ports, name) = text.split_once('/').unwrap_or((text, "tcp"));
    let ports = range(ports)?;
    if ports.0 == 0 {
        return Err(bad(text));
    }
    Ok((ports, protocol(name)?))
}

/// What is to be reached from outside.
///
/// # Errors
/// 400: a port or an address is none. 501: SCTP.
pub fn published(
    host_config: &HostConfig,
    exposed: &BTreeMap<String, Empty>,
) -> Result<Vec<PublishSpec>, ApiError> {
    let mut published = Vec::new();
    let mut bound = BTreeSet::new();
    for (text, bindings) in &host_config.port_bindings {
        let ((first, last), protocol) = port(text)?;
        for binding in bindings.iter().flatten() {
            let address = match binding.host_ip.as_str() {
                "" => None,
                ip => Some(ip.parse::<IpAddr>().map_err(|_| {
                    ApiError::invalid(format!("invalid IP address in port binding: {ip}"))
                })?),
            };
            let host = match binding.host_port.as_str() {
                "" | "0" => None,
                text => Some(range(text)?),
            };
            for guest in first..=last {
                // A range on both sides is one to one; one port and a range is any of it.
                let host = match host {
                    Some((from, to)) if last > first => {
                        if to - from != last - first {
                            return Err(ApiError::invalid(format!(
                                "invalid port specification: ranges {text} and {} differ in length",
                                binding.host_port
                            )));
                        }
                        let port = from + (guest - first);
                        Some((port, port))
                    }
                    other => other,
                };
                bound.insert((guest, protocol_name(protocol)));
                published.push(PublishSpec {
                    protocol,
                    address,
                    host,
                    guest,
                });
            }
        }
    }
    if host_config.publish_all_ports {
        for text in exposed.keys() {
            let ((first, last), protocol) = port(text)?;
            for guest in first..=last {
                if !bound.contains(&(guest, protocol_name(protocol))) {
                    published.push(PublishSpec {
                        protocol,
                        address: None,
                        host: None,
                        guest,
                    });
                }
            }
        }
    }
    Ok(published)
}

/// A port in a listing (`Port`, Engine API 1.47).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Port {
    /// Address on the host, if it is published.
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// In the container.
    #[serde(rename = "PrivatePort")]
    pub private: u16,
    /// On the host, if it is published.
    #[serde(rename = "PublicPort", skip_serializing_if = "Option::is_none")]
    pub public: Option<u16>,
    /// `tcp` or `udp`.
    #[serde(rename = "Type")]
    pub protocol: &'static str,
}

/// A running container's ports as a listing shows them.
pub fn listed(container: &Container, exposed: &BTreeMap<String, Empty>) -> Vec<Port> {
    if !container.state.is_on() {
        return Vec::new();
    }
    let mut ports: Vec<Port> = container
        .published
        .iter()
        .map(|published| Port {
            ip: Some(published.host.ip().to_string()),
            private: published.guest_port,
            public: Some(published.host.port()),
            protocol: protocol_name(published.protocol),
        })
        .collect();
    for (guest, protocol) in exposed_ports(exposed) {
        let known = |port: &Port| port.private == guest && port.protocol == protocol;
        if !ports.iter().any(known) {
            ports.push(Port {
                ip: None,
                private: guest,
                public: None,
                protocol,
            });
        }
    }
    ports.sort();
    ports
}

/// A running container's ports as `inspect` shows them.
pub fn inspected(
    container: &Container,
    exposed: &BTreeMap<String, Empty>,
) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let mut ports: BTreeMap<String, Option<Vec<PortBinding>>> = BTreeMap::new();
    if !container.state.is_on() {
        return ports;
    }
    for (guest, protocol) in exposed_ports(exposed) {
        ports.insert(format!("{guest}/{protocol}"), None);
    }
    for published in &container.published {
        let key = format!(
            "{}/{}",
            published.guest_port,
            protocol_name(published.protocol)
        );
        let bindings = ports.entry(key).or_default().get_or_insert_default();
        bindings.push(PortBinding {
            host_ip: published.host.ip().to_string(),
            host_port: published.host.port().to_string(),
        });
    }
    ports
}

fn exposed_ports(exposed: &BTreeMap<String, Empty>) -> Vec<(u16, &'static str)> {
    let ports = exposed.keys().filter_map(|text| port(text).ok());
    ports
        .flat_map(|((first, last), protocol)| {
            (first..=last).map(move |guest| (guest, protocol_name(protocol)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ports(
        bindings: serde_json::Value,
        all: bool,
        exposed: &[&str],
    ) -> Result<Vec<String>, String> {
        let host_config: HostConfig =
            serde_json::from_value(json!({"PortBindings": bindings, "PublishAllPorts": all}))
                .unwrap();
        let exposed = exposed
            .iter()
            .map(|port| ((*port).to_owned(), Empty))
            .collect();
        let published = published(&host_config, &exposed).map_err(|error| error.message)?;
        Ok(published
            .iter()
            .map(|spec| {
                let host = spec
                    .host
                    .map_or("any".into(), |(from, to)| format!("{from}-{to}"));
                let address = spec.address.map_or("*".into(), |ip| ip.to_string());
                format!(
                    "{address} {host} {}/{}",
                    spec.guest,
                    protocol_name(spec.protocol)
                )
            })
            .collect())
    }

    #[test]
    fn ports_are_published_as_they_are_bound() {
        let cases = [
            (
                json!({"80/tcp": [{"HostPort": "8080"}]}),
                vec!["* 8080-8080 80/tcp"],
            ),
            (
                json!({"80": [{"HostIp": "127.0.0.1", "HostPort": ""}]}),
                vec!["127.0.0.1 any 80/tcp"],
            ),
            (
                json!({"80/tcp": [{"HostPort": "8000-8010"}]}),
                vec!["* 8000-8010 80/tcp"],
            ),
            (
                json!({"53/udp": [{"HostIp": "::1", "HostPort": "0"}]}),
                vec!["::1 any 53/udp"],
            ),
            (
                json!({"80-81/tcp": [{"HostPort": "90-91"}]}),
                vec!["* 90-90 80/tcp", "* 91-91 81/tcp"],
            ),
            (json!({"80/tcp": null}), vec![]),
            (
                json!({"80/tcp": [{"HostPort": "1"}, {"HostPort": "2"}]}),
                vec!["* 1-1 80/tcp", "* 2-2 80/tcp"],
            ),
        ];
        for (bindings, expected) in cases {
            let shown = bindings.to_string();
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(ports(bindings, false, &[]), Ok(expected), "{shown}");
        }
    }

    #[test]
    fn all_exposed_ports_are_published_once() {
        let published = ports(
            json!({"80/tcp": [{"HostPort": "8080"}]}),
            true,
            &["80/tcp", "443", "53/udp", "9000-9001/tcp"],
        );
        assert_eq!(
            published.unwrap(),
            [
                "* 8080-8080 80/tcp",
                "* any 443/tcp",
                "* any 53/udp",
                "* any 9000/tcp",
                "* any 9001/tcp"
            ]
        );
    }

    #[test]
    fn what_is_no_port_is_refused() {
        let cases = [
            json!({"x/tcp": [{}]}),
            json!({"0/tcp": [{}]}),
            json!({"80/tcp": [{"HostPort": "70000"}]}),
            json!({"80/tcp": [{"HostPort": "9-8"}]}),
            json!({"80/tcp": [{"HostIp": "example"}]}),
            json!({"80/icmp": [{}]}),
            json!({"80-82/tcp": [{"HostPort": "90-91"}]}),
            json!({"80/sctp": [{}]}),
        ];
        for bindings in cases {
            assert!(ports(bindings.clone(), false, &[]).is_err(), "{bindings}");
        }
    }
}
