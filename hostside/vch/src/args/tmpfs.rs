//! `--tmpfs PATH[:OPTIONS]`.

use super::size::Size;
use std::str::FromStr;
use tether_wire::message::{Mount, MountSource};

/// What Docker's tmpfs mounts have unless told otherwise.
const DEFAULTS: [&str; 3] = ["noexec", "nosuid", "nodev"];

/// One tmpfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs(pub Mount);

impl FromStr for Tmpfs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, given) = text.split_once(':').unwrap_or((text, ""));
        if !target.starts_with('/') {
            return Err(format!(
                "invalid tmpfs mount path: '{target}' must be absolute"
            ));
        }
        let mut size = 0;
        let mut mode = 0o1777;
        let mut read_only = false;
        let mut options: Vec<String> = DEFAULTS.map(str::to_owned).to_vec();
        for option in given.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", value)) => size = value.parse::<Size>()?.0,
                Some(("mode", value)) => {
                    mode = u32::from_str_radix(value, 8)
                        .ok()
                        .filter(|mode| *mode <= 0o7777)
                        .ok_or_else(|| format!("invalid tmpfs mode: {value}"))?;
                }
                Some(("uid" | "gid" | "nr_inodes" | "nr_blocks" | "huge" | "mpol", _)) => {
                    options.push(option.to_owned());
                }
                Some((name, _)) => return Err(format!("invalid tmpfs option: {name}")),
                None => match option {
                    "ro" => read_only = true,
                    "rw" => read_only = false,
                    "exec" | "suid" | "dev" => {
                        let negated = format!("no{option}");
                        options.retain(|known| *known != negated);
                    }
                    "noexec" | "nosuid" | "nodev" => {
                        if !options.iter().any(|known| known == option) {
                            options.push(option.to_owned());
                        }
                    }
                    "sync" | "async" | "dirsync" | "atime" | "noatime" | "diratime"
                    | "nodiratime" | "relatime" | "norelatime" | "strictatime"
                    | "nostrictatime" => options.push(option.to_owned()),
                    _ => return Err(format!("invalid tmpfs option: {option}")),
                },
            }
        }
        Ok(Self(Mount {
            target: target.to_owned(),
            source: MountSource::Tmpfs {
                size,
                mode,
                options: options.join(","),
            },
            read_only,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_has_dockers_defaults_unless_told_otherwise() {
        type Expected = (&'static str, u64, u32, &'static str, bool);
        let cases: &[(&str, Option<Expected>)] = &[
            (
                "/run",
                Some(("/run", 0, 0o1777, "noexec,nosuid,nodev", false)),
            ),
            (
                "/run:rw,size=64k,mode=755,exec",
                Some(("/run", 65536, 0o755, "nosuid,nodev", false)),
            ),
            (
                "/t:ro,noatime,noexec,uid=5",
                Some(("/t", 0, 0o1777, "noexec,nosuid,nodev,noatime,uid=5", true)),
            ),
            ("run", None),
            ("/run:size=x", None),
            ("/run:mode=9", None),
            ("/run:bogus", None),
            ("/run:bogus=1", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(target, size, mode, options, read_only)| Mount {
                target: target.to_owned(),
                source: MountSource::Tmpfs {
                    size,
                    mode,
                    options: options.to_owned(),
                },
                read_only,
            });
            assert_eq!(
                text.parse::<Tmpfs>().ok().map(|tmpfs| tmpfs.0),
                expected,
                "{text}"
            );
        }
    }
}
