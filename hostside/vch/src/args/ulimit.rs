//! `--ulimit NAME=SOFT[:HARD]`.

use docker_api::ulimits::NAMES;
use std::str::FromStr;
use tether_wire::message::ResourceLimit;

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ulimit(pub ResourceLimit);

impl FromStr for Ulimit {
    type Err = String;

    /// A missing hard limit is the soft one; -1 is no limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("invalid ulimit argument: {text} (write it as nofile=1024:2048)");
        let (name, values) = text.split_once('=').ok_or_else(refuse)?;
        let resource = NAMES
            .iter()
            .position(|&known| known == name)
            .ok_or_else(|| format!("invalid ulimit type: {name} (one of {})", NAMES.join(", ")))?;
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            _ => text.parse::<u64>().map_err(|_| refuse()),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (value(soft)?, value(hard)?),
            None => (value(values)?, value(values)?),
        };
        if soft > hard {
            return Err(format!(
                "ulimit soft limit must be less than or equal to hard limit: {text}"
            ));
        }
        Ok(Self(ResourceLimit {
            resource: resource as u8,
            soft,
            hard,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_name_and_one_or_two_values() {
        let limit = |resource, soft, hard| {
            Some(Ulimit(ResourceLimit {
                resource,
                soft,
                hard,
            }))
        };
        let cases = [
            ("nofile=1024", limit(7, 1024, 1024)),
            ("nofile=1024:2048", limit(7, 1024, 2048)),
            ("core=0", limit(4, 0, 0)),
            ("core=-1", limit(4, u64::MAX, u64::MAX)),
            ("memlock=64:-1", limit(8, 64, u64::MAX)),
            ("nofile=2048:1024", None),
            ("nofile", None),
            ("nofile=", None),
            ("nofile=-2", None),
            ("files=1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Ulimit>().ok(), expected, "{text}");
        }
    }
}
