//! `-v FILE.vmdk:PATH[:OPTIONS]`.
//!
//! The source is an ext4 filesystem in a VMDK. With the option `size=SIZE` it is made, empty, when
//! the file does not exist; without it a missing file is an error, so a mistyped name never makes
//! an empty volume.

use super::size::Size;
use std::path::PathBuf;
use std::str::FromStr;

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The VMDK.
    pub file: PathBuf,
    /// Where it is mounted, absolute.
    pub target: String,
    /// Mounted, and opened, for reading only.
    pub read_only: bool,
    /// An empty volume gets what the image has at the target (Docker's `nocopy` turns it off).
    pub populate: bool,
    /// How big it is made when it is missing.
    pub size: Option<u64>,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let source = parts.next().unwrap_or_default();
        let Some(target) = parts.next() else {
            return Err(format!(
                "'{text}' names no file: a volume is an ext4 VMDK, FILE.vmdk:{}",
                if source.is_empty() { "PATH" } else { source }
            ));
        };
        if source.is_empty() {
            return Err(format!("invalid volume specification: '{text}'"));
        }
        if !target.starts_with('/') {
            return Err(format!(
                "invalid volume specification: '{text}': mount path must be absolute"
            ));
        }
        if target == "/" {
            return Err(format!(
                "invalid volume specification: '{text}': destination can't be '/'"
            ));
        }
        let mut volume = Self {
            file: PathBuf::from(source),
            target: target.to_owned(),
            read_only: false,
            populate: true,
            size: None,
        };
        let options = parts.flat_map(|part| part.split(','));
        for option in options {
            match option.split_once('=') {
                Some(("size", size)) => volume.size = Some(size.parse::<Size>()?.0),
                None => match option {
                    "ro" => volume.read_only = true,
                    "rw" => volume.read_only = false,
                    "nocopy" => volume.populate = false,
                    // SELinux labels: nothing to label on a disk.
                    "z" | "Z" => {}
                    _ => return Err(format!("invalid volume option: {option}")),
                },
                Some((name, _)) => return Err(format!("invalid volume option: {name}")),
            }
        }
        if volume.read_only && volume.size.is_some() {
            return Err(format!(
                "invalid volume specification: '{text}': a new volume cannot be read-only"
            ));
        }
        Ok(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_file_and_a_place() {
        let volume = |read_only, populate, size| {
            Some(Volume {
                file: "d.vmdk".into(),
                target: "/data".into(),
                read_only,
                populate,
                size,
            })
        };
        let cases = [
            ("d.vmdk:/data", volume(false, true, None)),
            ("d.vmdk:/data:ro", volume(true, true, None)),
            ("d.vmdk:/data:size=1g", volume(false, true, Some(1 << 30))),
            (
                "d.vmdk:/data:size=1g,nocopy",
                volume(false, false, Some(1 << 30)),
            ),
            ("d.vmdk:/data:rw:nocopy", volume(false, false, None)),
            ("d.vmdk:/data:ro,size=1g", None),
            ("/data", None),
            ("d.vmdk:data", None),
            ("d.vmdk:/", None),
            (":/data", None),
            ("d.vmdk:/data:bogus", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
