//! Who runs a process, by the rules of the real tether (`process/user.rs` of the
//! agent): a name must exist, a number need not; a group that is named replaces
//! both the entry's group and those that list the user.

use tether_wire::message::{Error, ErrorKind, User};

use crate::fake::files::mounts::Credentials;

/// Numbers, and where the home is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Numbers.
    pub who: Credentials,
    /// From passwd; `/` where there is no entry.
    pub home: String,
}

fn number(text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number < i32::MAX as u32 => Ok(Some(number)),
        _ => Err(invalid(format!(
            "the id {text} is not between 0 and 2147483646"
        ))),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

/// A group's line: name, number, members.
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn group(wanted: &str, text: &str) -> Result<u32, Error> {
    let number = number(wanted)?;
    groups(text)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or(number)
        .ok_or_else(|| invalid(format!("the image's /etc/group has no group {wanted:?}")))
}

/// Looks a user up in the texts of passwd and group.
///
/// # Errors
/// `Invalid` for a name that is not there.
pub fn resolve(user: &User, passwd: &str, group_text: &str) -> Result<Resolved, Error> {
    let (wanted, wanted_group) = user.user.split_once(':').unwrap_or((&user.user, ""));
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let as_number = number(wanted)?;
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let gid: u32 = fields.get(3)?.parse().ok()?;
        let name = *fields.first()?;
        let home = fields.get(5).copied().filter(|home| !home.is_empty());
        (name == wanted || as_number == Some(uid)).then_some((name, uid, gid, home))
    });
    let mut resolved = match (entry, as_number) {
        (Some((_, uid, gid, home)), _) => Resolved {
            who: Credentials {
                uid,
                gid,
                groups: Vec::new(),
            },
            home: home.unwrap_or("/").to_owned(),
        },
        (None, Some(uid)) => Resolved {
            who: Credentials {
                uid,
                ..Credentials::default()
            },
            home: "/".to_owned(),
        },
        (None, None) => {
            return Err(invalid(format!(
                "the image's /etc/passwd has no user {wanted:?}"
            )));
        }
    };
    let mut add = |gid: u32| {
        if !resolved.who.groups.contains(&gid) {
            resolved.who.groups.push(gid);
        }
    };
    for name in &user.groups {
        add(group(name, group_text)?);
    }
    if !wanted_group.is_empty() {
        resolved.who.gid = group(wanted_group, group_text)?;
    } else if let Some((name, ..)) = entry {
        for (_, gid, members) in groups(group_text) {
            if members.split(',').any(|member| member.trim() == name) {
                add(gid);
            }
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\
        app:x:1000:1001:,,,:/home/app:/bin/sh\nhomeless:x:1002:1002::\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:root,app\naudio:x:29:app\napp:x:1001:\n";

    #[test]
    fn users_are_resolved_as_tether_resolves_them() {
        type Expected<'a> = Option<(u32, u32, &'a [u32], &'a str)>;
        let cases: [(&str, &[&str], Expected<'_>); 9] = [
            ("", &[], Some((0, 0, &[4], "/root"))),
            ("app", &[], Some((1000, 1001, &[4, 29], "/home/app"))),
            ("1000", &[], Some((1000, 1001, &[4, 29], "/home/app"))),
            ("app:audio", &[], Some((1000, 29, &[], "/home/app"))),
            ("7:8", &["adm"], Some((7, 8, &[4], "/"))),
            ("homeless", &[], Some((1002, 1002, &[], "/"))),
            ("nobody", &[], None),
            ("app:none", &[], None),
            ("4294967295", &[], None),
        ];
        for (user, extra, expected) in cases {
            let wanted = User {
                user: user.into(),
                groups: extra.iter().map(|&group| group.into()).collect(),
            };
            let resolved = resolve(&wanted, PASSWD, GROUP);
            match expected {
                None => assert_eq!(resolved.unwrap_err().kind, ErrorKind::Invalid, "{user}"),
                Some((uid, gid, groups, home)) => {
                    let resolved = resolved.unwrap();
                    let who = resolved.who;
                    assert_eq!((who.uid, who.gid), (uid, gid), "{user}");
                    assert_eq!(
                        (who.groups.as_slice(), resolved.home.as_str()),
                        (groups, home)
                    );
                }
            }
        }
    }
}
