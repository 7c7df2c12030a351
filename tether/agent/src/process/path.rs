//! Which files are tried for a program's name.

use crate::prelude::*;
/// What a process without `PATH` gets: Docker's own default.
pub const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The files to try, in order. A name with a slash is itself; else each directory of `PATH`. Empty
/// and relative directories are passed over: what a program is must not depend on where one stands.
pub fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_in_order_and_paths_are_not() {
        let check = |program: &str, path: &str, expected: &[&str]| {
            assert_eq!(candidates(program, path), expected, "{program} in {path}");
        };
        check("sh", "/bin:/usr/bin/", &["/bin/sh", "/usr/bin/sh"]);
        check("sh", "/", &["/sh"]);
        check("/bin/sh", "/usr/bin", &["/bin/sh"]);
        check("./run", "/usr/bin", &["./run"]);
        check("sh", ":.:relative:/bin:", &["/bin/sh"]);
        check("sh", "", &[]);
    }
}
