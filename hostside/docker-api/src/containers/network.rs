//! A container's network, as `create` asks for it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portlayer::spec::{HostSpec, NetworkAttachment, NetworkSpec};

use crate::containers::config::Config;
use crate::containers::host_config::HostConfig;
use crate::containers::ports;
use crate::errors::ApiError;
use crate::json::engine_object;

engine_object! {
    /// The networks of a container to be (`NetworkingConfig`, Engine API 1.47).
    Networking {
        /// By name.
        endpoints_config: BTreeMap<String, Option<Endpoint>>,
    }
}

engine_object! {
    /// A container's place in a network to be (`EndpointSettings`, Engine API 1.47).
    Endpoint {
        /// Link address; empty for any.
        mac_address: String,
        /// Further names there.
        aliases: Option<Vec<String>>,
    }
}

fn addresses(texts: &[String], what: &str) -> Result<Vec<IpAddr>, ApiError> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| ApiError::invalid(format!("invalid {what} address: {text}")))
    };
    texts.iter().map(parse).collect()
}

fn extra_host(text: &str) -> Result<HostSpec, ApiError> {
    let bad = || ApiError::invalid(format!("bad format for add-host: {text:?}"));
    // `name=address` is the newer form; an IPv6 address has colons of its own.
    let (name, address) = match text.split_once('=') {
        Some(both) => both,
        None => text.split_once(':').ok_or_else(bad)?,
    };
    if name.is_empty() {
        return Err(bad());
    }
    let address = match address.trim_start_matches('[').trim_end_matches(']') {
        "host-gateway" => None,
        ip => Some(ip.parse().map_err(|_| {
            ApiError::invalid(format!("invalid IP address in add-host: {address:?}"))
        })?),
    };
    Ok(HostSpec {
        name: name.to_owned(),
        address,
    })
}

/// Where a container is attached. The host configuration then names the network.
///
/// # Errors
/// 400: it makes no sense. 404: no such network. 501: the host's, another container's, or several.
pub fn network(
    config: &Config,
    host_config: &mut HostConfig,
    networking: &Networking,
) -> Result<NetworkSpec, ApiError> {
    let mode = match host_config.network_mode.as_str() {
        _ if config.network_disabled => "none",
        "" | "default" => "bridge",
        mode => mode,
    }
    .to_owned();
    match mode.as_str() {
        "bridge" | "none" => {}
        "host" => {
            return Err(ApiError::unsupported(
                "the host's network (--network host; publish ports with -p instead)",
            ));
        }
        other if other.starts_with("container:") => {
            return Err(ApiError::unsupported(format!(
                "sharing a container's network ({other})"
            )));
        }
        other => return Err(crate::networks::not_found(other)),
    }
    let mut mac = config.mac_address.clone();
    for (name, endpoint) in &networking.endpoints_config {
        let Some(name) = crate::networks::name_of(if name == "default" { "bridge" } else { name })
        else {
            return Err(crate::networks::not_found(name));
        };
        if name != mode {
            return Err(ApiError::unsupported("more than one network"));
        }
        if let Some(endpoint) = endpoint
            && !endpoint.mac_address.is_empty()
        {
            mac.clone_from(&endpoint.mac_address);
        }
    }
    let attachment = if mode == "none" {
        NetworkAttachment::None
    } else {
        let mac = match mac.as_str() {
            "" => None,
            text => Some(
                text.to_owned()
                    .try_into()
                    .map_err(|_| ApiError::invalid(format!("invalid MAC address: {text}")))?,
            ),
        };
        NetworkAttachment::Default {
            mac,
            published: ports::published(host_config, &config.exposed_ports)?,
        }
    };
    host_config.network_mode = mode;
    Ok(NetworkSpec {
        attachment,
        dns: addresses(&host_config.dns, "DNS")?,
        // Docker's way to say "none".
        dns_search: host_config
            .dns_search
            .iter()
            .filter(|domain| *domain != ".")
            .cloned()
            .collect(),
        dns_options: host_config.dns_options.clone(),
        hosts: host_config
            .extra_hosts
            .iter()
            .flatten()
            .map(|text| extra_host(text))
            .collect::<Result<_, _>>()?,
    })
}
