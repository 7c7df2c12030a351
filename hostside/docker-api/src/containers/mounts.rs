//! What is mounted in a container.
//!
//! A VM sees none of its host's directories, and volumes are not there yet: what asks for either is refused
//! by name. A directory that an image declares a volume, or that is asked for as an anonymous one, is kept
//! on the container's own disk, which lives as long as the container, as an anonymous volume does.

use portlayer::spec::MountSpec;

use crate::containers::host_config::{HostConfig, Mount, SHM_SIZE};
use crate::errors::ApiError;

/// What Docker's tmpfs mounts have unless told otherwise.
const DEFAULTS: [&str; 3] = ["noexec", "nosuid", "nodev"];

/// A size as `mount(8)` takes it, in bytes: a number and `k`, `m` or `g`.
fn size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 10),
        b'm' => (&lower[..lower.len() - 1], 20),
        b'g' => (&lower[..lower.len() - 1], 30),
        _ => (lower.as_str(), 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A tmpfs at `target` with the options of `docker run --tmpfs`.
///
/// # Errors
/// 400: the path or an option is none.
pub fn tmpfs(target: &str, given: &str) -> Result<MountSpec, ApiError> {
    if !target.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    let bad = |option: &str| ApiError::invalid(format!("invalid tmpfs option [{option:?}]"));
    let mut bytes = 0;
    let mut mode = 0o1777;
    let mut options: Vec<String> = DEFAULTS.map(str::to_owned).to_vec();
    for option in given.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => bytes = size(value).ok_or_else(|| bad(option))?,
            Some(("mode", value)) => {
                mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| bad(option))?;
            }
            Some(("uid" | "gid" | "nr_inodes" | "nr_blocks" | "huge" | "mpol", _)) => {
                options.push(option.to_owned());
            }
            Some(_) => return Err(bad(option)),
            None => match option {
                "rw" => options.retain(|known| known != "ro"),
                "exec" | "suid" | "dev" => {
                    let negated = format!("no{option}");
                    options.retain(|known| *known != negated);
                }
                "ro" | "noexec" | "nosuid" | "nodev" | "sync" | "async" | "dirsync" | "atime"
                | "noatime" | "diratime" | "nodiratime" | "relatime" | "norelatime"
                | "strictatime" | "nostrictatime" => {
                    if !options.iter().any(|known| known == option) {
                        options.push(option.to_owned());
                    }
                }
                _ => return Err(bad(option)),
            },
        }
    }
    Ok(MountSpec::Tmpfs {
        target: target.to_owned(),
        size: bytes,
        mode,
        options: options.join(","),
    })
}

fn mount(mount: &Mount) -> Result<Option<MountSpec>, ApiError> {
    match mount.kind.as_str() {
        "tmpfs" => {
            let given = mount.tmpfs_options.clone().unwrap_or_default();
            let mut options: Vec<String> = given
                .options
                .iter()
                .map(|option| option.join("="))
                .collect();
            if given.size_bytes != 0 {
                options.push(format!("size={}", given.size_bytes));
            }
            if given.mode != 0 {
                options.push(format!("mode={:o}", given.mode));
            }
            if mount.read_only {
                options.push("ro".to_owned());
            }
            tmpfs(&mount.target, &options.join(",")).map(Some)
        }
        "volume" if mount.source.is_empty() => Ok(None),
        "volume" => Err(ApiError::unsupported(format!(
            "a named volume ({}:{})",
            mount.source, mount.target
        ))),
        "bind" => Err(bind(&mount.source, &mount.target)),
        other => Err(ApiError::unsupported(format!("a mount of type {other:?}"))),
    }
}

fn bind(source: &str, target: &str) -> ApiError {
    ApiError::unsupported(format!(
        "mounting a directory of the host ({source}:{target}; a container is a VM: copy files in with \
         `docker cp`, or put them into the image)"
    ))
}

/// All that is to be mounted, /dev/shm first.
///
/// # Errors
/// 400: it makes no sense. 501: host directories, named volumes and other containers' volumes.
pub fn all(host_config: &HostConfig) -> Result<Vec<MountSpec>, ApiError> {
    if let Some(text) = host_config.binds.iter().flatten().next() {
        let (source, target) = text.split_once(':').unwrap_or((text, text));
        return Err(if source.starts_with(['/', '.', '~']) {
            bind(source, target)
        } else {
            ApiError::unsupported(format!("a named volume ({text})"))
        });
    }
    if host_config.volumes_from.iter().flatten().next().is_some() {
        return Err(ApiError::unsupported(
            "mounting another container's volumes",
        ));
    }
    let mut mounts = Vec::new();
    if host_config.shm_size < 0 {
        return Err(ApiError::invalid("SHM size can not be less than 0"));
    }
    if host_config.shm_size != 0 && host_config.shm_size != SHM_SIZE {
        let options = format!("size={}", host_config.shm_size);
        mounts.push(tmpfs("/dev/shm", &options)?);
    }
    for (target, options) in &host_config.tmpfs {
        mounts.push(tmpfs(target, options)?);
    }
    for wanted in &host_config.mounts {
        mounts.extend(mount(wanted)?);
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mounted(host_config: serde_json::Value) -> Result<Vec<MountSpec>, ApiError> {
        all(&serde_json::from_value(host_config).unwrap())
    }

    fn spec(target: &str, size: u64, mode: u32, options: &str) -> MountSpec {
        MountSpec::Tmpfs {
            target: target.into(),
            size,
            mode,
            options: options.into(),
        }
    }

    #[test]
    fn a_tmpfs_has_docker_s_defaults_unless_told_otherwise() {
        let cases = [
            ("", Some(spec("/t", 0, 0o1777, "noexec,nosuid,nodev"))),
            (
                "rw,size=64k,mode=755,exec",
                Some(spec("/t", 65_536, 0o755, "nosuid,nodev")),
            ),
            (
                "ro,uid=5",
                Some(spec("/t", 0, 0o1777, "noexec,nosuid,nodev,ro,uid=5")),
            ),
            ("size=x", None),
            ("mode=9", None),
            ("bogus", None),
            ("bogus=1", None),
        ];
        for (options, expected) in cases {
            assert_eq!(tmpfs("/t", options).ok(), expected, "{options}");
        }
        assert!(tmpfs("t", "").is_err());
    }

    #[test]
    fn what_can_be_mounted_is_and_what_cannot_is_named() {
        assert_eq!(
            mounted(json!({
                "ShmSize": 1_048_576, "Tmpfs": {"/a": "size=1m"},
                "Mounts": [
                    {"Type": "tmpfs", "Target": "/b", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 0o700}},
                    {"Type": "volume", "Target": "/anonymous"},
                ],
            })),
            Ok(vec![
                spec("/dev/shm", 1 << 20, 0o1777, "noexec,nosuid,nodev"),
                spec("/a", 1 << 20, 0o1777, "noexec,nosuid,nodev"),
                spec("/b", 4096, 0o700, "noexec,nosuid,nodev"),
            ])
        );
        assert_eq!(mounted(json!({"ShmSize": SHM_SIZE})), Ok(vec![]));
        let refused = [
            (
                json!({"Binds": ["/etc:/etc:ro"]}),
                "mounting a directory of the host (/etc:/etc:ro",
            ),
            (
                json!({"Binds": ["data:/data"]}),
                "a named volume (data:/data)",
            ),
            (
                json!({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"}]}),
                "(/a:/b",
            ),
            (
                json!({"Mounts": [{"Type": "volume", "Source": "d", "Target": "/b"}]}),
                "(d:/b)",
            ),
            (
                json!({"VolumesFrom": ["other"]}),
                "another container's volumes",
            ),
        ];
        for (given, words) in refused {
            let error = mounted(given).unwrap_err();
            assert_eq!(error.status.as_u16(), 501);
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
