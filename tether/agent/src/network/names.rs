//! /etc/hosts and /etc/resolv.conf.

use crate::failure::{Result, invalid};
use crate::prelude::*;
use core::fmt::Write;
use core::net::IpAddr;
use tether_wire::message::{Dns, HostsEntry};

const LOCAL: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    ff00::0\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// hosts(5): what every container has, its own addresses, then the further lines.
///
/// # Errors
/// `Invalid` for a name that does not fit a line.
pub fn hosts(
    own: &[IpAddr],
    hostname: &str,
    domainname: &str,
    further: &[HostsEntry],
) -> Result<String> {
    let mut text = String::from(LOCAL);
    for address in own {
        let _ = write!(text, "{address}\t");
        if !domainname.is_empty() {
            let _ = write!(text, "{hostname}.{domainname} ");
        }
        text.push_str(hostname);
        text.push('\n');
    }
    for entry in further {
        let _ = write!(text, "{}", entry.address);
        for (index, name) in entry.names.iter().enumerate() {
            text.push(if index == 0 { '\t' } else { ' ' });
            text.push_str(word(name)?);
        }
        text.push('\n');
    }
    Ok(text)
}

/// resolv.conf(5); servers of a lease where the host names none.
///
/// # Errors
/// `Invalid` for a word that does not fit a line.
pub fn resolv_conf(dns: &Dns, leased: &[IpAddr]) -> Result<String> {
    let mut text = String::new();
    let servers = if dns.servers.is_empty() {
        leased
    } else {
        &dns.servers
    };
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (keyword, words) in [("search", &dns.search), ("options", &dns.options)] {
        if !words.is_empty() {
            text.push_str(keyword);
            for one in words {
                text.push(' ');
                text.push_str(word(one)?);
            }
            text.push('\n');
        }
    }
    Ok(text)
}

fn word(text: &str) -> Result<&str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(invalid(format!("{text:?} is no name")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2));

    #[test]
    fn hosts_has_localhost_the_container_and_the_further_lines() {
        let further = [HostsEntry {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            names: vec!["db".to_owned(), "db.example".to_owned()],
        }];
        let text = hosts(&[OWN], "web", "", &further).unwrap();
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("172.17.0.2\tweb\n10.0.0.1\tdb db.example\n"));
        let text = hosts(&[OWN], "web", "example.org", &[]).unwrap();
        assert!(text.ends_with("172.17.0.2\tweb.example.org web\n"));
    }

    #[test]
    fn names_that_would_make_another_line_are_refused() {
        let entry = |name: &str| HostsEntry {
            address: OWN,
            names: vec![name.to_owned()],
        };
        assert!(hosts(&[], "web", "", &[entry("a\n1.2.3.4 b")]).is_err());
        assert!(hosts(&[], "web", "", &[entry("")]).is_err());
        let dns = Dns {
            search: vec!["a b".to_owned()],
            ..Dns::default()
        };
        assert!(resolv_conf(&dns, &[]).is_err());
    }

    #[test]
    fn leased_servers_stand_in_where_none_is_named() {
        let mut dns = Dns::default();
        assert_eq!(
            resolv_conf(&dns, &[OWN]).unwrap(),
            "nameserver 172.17.0.2\n"
        );
        dns.servers.push(IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)));
        dns.search.push("example.org".to_owned());
        dns.options.push("ndots:2".to_owned());
        assert_eq!(
            resolv_conf(&dns, &[OWN]).unwrap(),
            "nameserver 9.9.9.9\nsearch example.org\noptions ndots:2\n"
        );
    }
}
