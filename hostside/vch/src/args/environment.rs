//! `--env`, `--env-file`, `--label-file`: lists of NAME=VALUE.

use anyhow::{Context, Result, bail};
use std::path::Path;

/// Lines of a file as `docker run --env-file` reads them: blank lines and lines that start with `#`
/// say nothing, space before a name is dropped, quotes have no meaning.
///
/// # Errors
/// The file cannot be read, is not UTF-8, or a name is empty or holds white space.
pub fn file(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(path).with_context(|| format!("cannot open {}", path.display()))?;
    let text =
        String::from_utf8(text).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!(
                "{} line {}: no variable name on it",
                path.display(),
                number + 1
            );
        }
        if name.contains(char::is_whitespace) && line.contains('=') {
            bail!(
                "{} line {}: variable '{name}' contains whitespaces",
                path.display(),
                number + 1
            );
        }
        lines.push(line.trim_end_matches('\r').to_owned());
    }
    Ok(lines)
}

/// The image's environment changed by the user's: `NAME=VALUE` sets, a bare `NAME` passes on what
/// `outside` says, or removes the name when it says nothing.
pub fn merge(
    image: &[String],
    user: &[String],
    outside: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let mut merged: Vec<String> = Vec::new();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in image.iter().chain(user) {
        let name_of_entry = name(entry);
        let value = if entry.contains('=') {
            Some(entry.clone())
        } else {
            outside(entry).map(|value| format!("{entry}={value}"))
        };
        let place = merged.iter().position(|other| name(other) == name_of_entry);
        match (place, value) {
            (Some(place), Some(value)) => merged[place] = value,
            (Some(place), None) => {
                merged.remove(place);
            }
            (None, Some(value)) => merged.push(value),
            (None, None) => {}
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&s| s.to_owned()).collect()
    }

    #[test]
    fn the_users_variables_replace_the_images() {
        let outside = |name: &str| (name == "SHELL").then(|| "/bin/zsh".to_owned());
        let merged = merge(
            &strings(&["PATH=/bin", "A=1", "GONE=x"]),
            &strings(&["A=2", "B=", "SHELL", "GONE", "ABSENT", "B=3=4"]),
            outside,
        );
        assert_eq!(
            merged,
            strings(&["PATH=/bin", "A=2", "B=3=4", "SHELL=/bin/zsh"])
        );
    }

    #[test]
    fn an_environment_file_has_comments_and_no_quotes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(
            &path,
            "\u{feff}# a comment\n\n  A=\"x\" # kept\r\nPASSED\nB=\n",
        )
        .unwrap();
        assert_eq!(
            file(&path).unwrap(),
            strings(&["A=\"x\" # kept", "PASSED", "B="])
        );
        for bad in ["=x\n", "A B=1\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(file(&path).is_err(), "{bad:?} was taken");
        }
        let missing = file(&directory.path().join("missing")).unwrap_err();
        assert!(format!("{missing:#}").contains("missing"));
    }
}
