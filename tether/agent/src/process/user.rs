//! Who runs a process: names and numbers against the image's own passwd(5) and group(5).
//!
//! The rules are those of `docker run --user`: a name must exist, a number need not; a user without
//! a group gets the passwd entry's group and the supplementary groups that list the name; a group
//! that is named replaces both.

use crate::failure::{Result, invalid};
use crate::prelude::*;
use crate::tree::Tree;
use tether_wire::message::User;

/// Bound on /etc/passwd and /etc/group of an image, in bytes.
const LIMIT: usize = 4 << 20;

/// Numbers a process runs with, and where its home is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, each once.
    pub groups: Vec<u32>,
    /// From passwd; `/` where there is no entry.
    pub home: String,
}

/// Looks a user up in an image.
///
/// # Errors
/// `Invalid` for a name that is not there; what reading the files says.
pub fn resolve(user: &User, image: &Tree) -> Result<Credentials> {
    let passwd = image.read("/etc/passwd", LIMIT)?.unwrap_or_default();
    let group = image.read("/etc/group", LIMIT)?.unwrap_or_default();
    resolve_in(
        user,
        &String::from_utf8_lossy(&passwd),
        &String::from_utf8_lossy(&group),
    )
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl GroupEntry<'_> {
    fn lists(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or("");
        Some(GroupEntry { name, gid, members })
    })
}

fn resolve_in(user: &User, passwd: &str, group: &str) -> Result<Credentials> {
    let (wanted_user, wanted_group) = match user.user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user.user.as_str(), ""),
    };
    let wanted_user = if wanted_user.is_empty() {
        "0"
    } else {
        wanted_user
    };
    let number = number(wanted_user)?;
    let entry =
        passwd_entries(passwd).find(|entry| entry.name == wanted_user || number == Some(entry.uid));
    let mut found = match (&entry, number) {
        (Some(entry), _) => Credentials {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: if entry.home.is_empty() {
                "/"
            } else {
                entry.home
            }
            .to_owned(),
        },
        (None, Some(uid)) => Credentials {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
        (None, None) => {
            return Err(invalid(format!(
                "the image's /etc/passwd has no user {wanted_user:?}"
            )));
        }
    };
    if !wanted_group.is_empty() {
        found.gid = group_number(wanted_group, group)?;
    } else if let Some(entry) = &entry {
        for listed in group_entries(group).filter(|listed| listed.lists(entry.name)) {
            add(&mut found.groups, listed.gid);
        }
    }
    for name in &user.groups {
        let gid = group_number(name, group)?;
        add(&mut found.groups, gid);
    }
    Ok(found)
}

fn add(groups: &mut Vec<u32>, gid: u32) {
    if !groups.contains(&gid) {
        groups.push(gid);
    }
}

fn group_number(wanted: &str, group: &str) -> Result<u32> {
    let number = number(wanted)?;
    match group_entries(group).find(|entry| entry.name == wanted) {
        Some(entry) => Ok(entry.gid),
        None => {
            number.ok_or_else(|| invalid(format!("the image's /etc/group has no group {wanted:?}")))
        }
    }
}

/// A name's number, if it is one. 2^32-1 means "leave alone" to the kernel and is nobody.
fn number(name: &str) -> Result<Option<u32>> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match name.parse() {
        Ok(number) if number < i32::MAX as u32 => Ok(Some(number)),
        _ => Err(invalid(format!(
            "the id {name} is not between 0 and 2147483646"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1001:,,,:/home/app:/bin/sh\n\
        homeless:x:1002:1002::\n\
        1000:x:7:7::/seven:/bin/sh\n";
    const GROUP: &str = "root:x:0:\n\
        adm:x:4:root,app\n\
        audio:x:29:app\n\
        app:x:1001:\n\
        5:x:6:\n";

    fn check(user: &str, extra: &[&str], expected: Option<(u32, u32, &[u32], &str)>) {
        let user = User {
            user: user.to_owned(),
            groups: extra.iter().map(|&name| name.to_owned()).collect(),
        };
        let found = resolve_in(&user, PASSWD, GROUP).ok();
        let expected = expected.map(|(uid, gid, groups, home)| Credentials {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        });
        assert_eq!(found, expected, "{user:?}");
    }

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        check("", &[], Some((0, 0, &[4], "/root")));
        check("app", &[], Some((1000, 1001, &[4, 29], "/home/app")));
        check("1", &[], Some((1, 1, &[], "/usr/sbin")));
        check("4321", &[], Some((4321, 0, &[], "/")));
        check("homeless", &[], Some((1002, 1002, &[], "/")));
    }

    #[test]
    fn a_named_group_replaces_the_users_own() {
        check("app:audio", &[], Some((1000, 29, &[], "/home/app")));
        check("app:77", &[], Some((1000, 77, &[], "/home/app")));
        check(":audio", &[], Some((0, 29, &[], "/root")));
        check("9:9", &["adm", "9", "adm"], Some((9, 9, &[4, 9], "/")));
        check("app", &["5"], Some((1000, 1001, &[4, 29, 6], "/home/app")));
    }

    #[test]
    fn the_first_entry_of_a_name_or_number_counts() {
        check("1000", &[], Some((1000, 1001, &[4, 29], "/home/app")));
    }

    #[test]
    fn what_does_not_exist_or_is_no_id_is_refused() {
        check("nobody", &[], None);
        check("app:nogroup", &[], None);
        check("app", &["nogroup"], None);
        check("4294967295", &[], None);
        check("99999999999999999999", &[], None);
        check("-1", &[], None);
    }

    #[test]
    fn an_image_without_passwd_still_has_numbers() {
        let user = User::default();
        let found = resolve_in(&user, "", "").unwrap();
        assert_eq!((found.uid, found.gid, found.home.as_str()), (0, 0, "/"));
    }
}
