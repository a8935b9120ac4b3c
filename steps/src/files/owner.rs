//! Owners by name, because numbers differ between machines.

use std::collections::BTreeMap;

/// The users and groups of this machine.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Owners {
    /// Reads the local files; what only a network directory knows keeps its number.
    pub(super) fn load() -> Self {
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    pub(super) fn user(&self, uid: u32) -> Option<String> {
        self.users.get(&uid).cloned()
    }

    pub(super) fn group(&self, gid: u32) -> Option<String> {
        self.groups.get(&gid).cloned()
    }

    /// Returns the number of a user here: by name if there is one, else as recorded.
    pub(super) fn uid(&self, name: Option<&str>, recorded: u32) -> u32 {
        number(&self.users, name).unwrap_or(recorded)
    }

    /// Returns the number of a group here: by name if there is one, else as recorded.
    pub(super) fn gid(&self, name: Option<&str>, recorded: u32) -> u32 {
        number(&self.groups, name).unwrap_or(recorded)
    }
}

fn number(names: &BTreeMap<u32, String>, name: Option<&str>) -> Option<u32> {
    names.iter().find(|(_, known)| Some(known.as_str()) == name).map(|(&number, _)| number)
}

fn read(path: &str) -> BTreeMap<u32, String> {
    parse(&std::fs::read_to_string(path).unwrap_or_default())
}

/// Both files have the name in the first field and the number in the third.
fn parse(text: &str) -> BTreeMap<u32, String> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_numbers() {
        let users =
            parse("root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\nbroken\n");
        let owners = Owners { users, groups: BTreeMap::new() };
        assert_eq!(owners.user(33).as_deref(), Some("www-data"));
        assert_eq!(owners.uid(Some("www-data"), 1005), 33);
        assert_eq!(owners.uid(Some("unknown"), 1005), 1005);
        assert_eq!(owners.gid(None, 7), 7);
    }
}
