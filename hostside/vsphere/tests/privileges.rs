//! PRIVILEGES.md lists every method the client can call, with what it needs; and nothing else.

use std::collections::BTreeSet;

use vsphere::driver::datastore::FILE_PRIVILEGES;
use vsphere::types::{METHODS, Repeat};

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/PRIVILEGES.md");
    std::fs::read_to_string(path).unwrap()
}

fn row(method: &vsphere::types::MethodFacts) -> String {
    let privileges: Vec<String> = method
        .privileges
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    let privileges = match privileges.is_empty() {
        true => "none".to_owned(),
        false => privileges.join(", "),
    };
    let repeat = match method.repeat {
        Repeat::Safe => "yes",
        Repeat::Never => "no",
    };
    format!(
        "| `{}.{}` | {} | {privileges} | {repeat} |",
        method.object, method.name, method.purpose
    )
}

#[test]
fn every_call_is_listed_with_its_privileges_and_no_other() {
    let document = document();
    let expected: Vec<String> = METHODS.iter().map(row).collect();
    let found: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches('|').count() == 5)
        .collect();
    let missing: Vec<&String> = expected
        .iter()
        .filter(|row| !found.contains(&row.as_str()))
        .collect();
    let stale: Vec<&&str> = found
        .iter()
        .filter(|row| !expected.iter().any(|other| other == **row))
        .collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "missing:\n{missing:#?}\nstale:\n{stale:#?}"
    );
}

#[test]
fn every_privilege_is_in_the_list_of_privileges() {
    let document = document();
    let listed: BTreeSet<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches('|').count() == 3)
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    let needed: BTreeSet<&str> = METHODS
        .iter()
        .flat_map(|method| method.privileges)
        .chain(FILE_PRIVILEGES)
        .copied()
        .collect();
    assert_eq!(listed, needed);
}
