//! Who a container's main process is: `USER[:GROUP]`, looked up in the image's own files.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// `/etc/passwd` and `/etc/group` of an image are read up to this size.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A user inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// A name that the image does not know.
#[derive(Debug, thiserror::Error)]
#[error("the image has no {kind} {name:?} in {file}; write a number, or a name that is there")]
pub(super) struct UserError {
    kind: &'static str,
    name: String,
    file: &'static str,
}

#[cfg(test)]
impl User {
    pub(super) fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned() }
    }
}

/// Looks a user up below `rootfs`, never following a link out of it.
pub(super) fn look_up(rootfs: &Path, user: &str) -> Result<User, UserError> {
    find(user, &read(rootfs, "etc/passwd"), &read(rootfs, "etc/group"))
}

fn read(rootfs: &Path, name: &str) -> String {
    let mut text = Vec::new();
    if let Ok(root) = File::open(rootfs) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened: rustix::io::Result<OwnedFd> =
            openat2(&root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        if let Ok(file) = opened {
            // What cannot be read is as good as not there: the look-up then says what it misses.
            let _ = File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut text);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

pub(super) fn find(user: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let line = passwd.lines().map(fields).find(|fields| match number {
        Some(uid) => fields.get(2).and_then(|text| text.parse().ok()) == Some(uid),
        None => fields.first() == Some(&name),
    });
    let known = line.as_ref().and_then(|fields| {
        let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
        Some((number(2)?, number(3)?, fields.get(5).copied().unwrap_or("/")))
    });
    let unknown = |kind, name: &str, file| UserError { kind, name: name.to_owned(), file };
    let (uid, gid, home) = match (known, number) {
        (Some(known), _) => known,
        (None, Some(uid)) => (uid, 0, if uid == 0 { "/root" } else { "/" }),
        (None, None) => return Err(unknown("user", name, "/etc/passwd")),
    };
    let (gid, groups) = match group_name {
        Some(name) => {
            let listed = group.lines().map(fields).find(|fields| fields.first() == Some(&name));
            let listed = listed.and_then(|fields| fields.get(2)?.parse().ok());
            let gid = listed.or_else(|| name.parse().ok());
            (gid.ok_or_else(|| unknown("group", name, "/etc/group"))?, Vec::new())
        }
        None => (gid, supplementary(line.as_ref().and_then(|l| l.first().copied()), group)),
    };
    Ok(User { uid, gid, groups, home: if home.is_empty() { "/" } else { home }.to_owned() })
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn supplementary(name: Option<&str>, group: &str) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    group
        .lines()
        .map(fields)
        .filter(|fields| fields.get(3).is_some_and(|list| list.split(',').any(|m| m == name)))
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nbad:x\n";
        let group = "root:x:0:\nnode:x:1001:\nvideo:x:44:node,x\nbad\n";
        let shown = |user: &str| match find(user, passwd, group) {
            Ok(User { uid, gid, groups, home }) => format!("{uid} {gid} {groups:?} {home}"),
            Err(e) => e.to_string(),
        };
        for (user, says) in [
            ("", "0 0 [] /root"),
            ("node", "1000 1001 [44] /home/node"),
            ("1000", "1000 1001 [44] /home/node"),
            ("node:video", "1000 44 [] /home/node"),
            ("7:8", "7 8 [] /"),
            ("7", "7 0 [] /"),
        ] {
            assert_eq!(shown(user), says, "{user}");
        }
        assert!(shown("nobody").starts_with("the image has no user \"nobody\""));
        assert!(shown("node:none").starts_with("the image has no group \"none\""));
        assert!(shown("bad").starts_with("the image has no user"));
    }
}
