//! The group that shares the state directory.

use std::fs;
use std::process::Command;

use lifeboat_engine::project::Project;
use lifeboat_engine::runs::{StateDir, StateGroup, SystemProbe};

use crate::exit::{Exit, Failure};
use crate::render;

/// Opens the state directory of a project, for its owner or for the group that `state` names.
pub(crate) fn state(project: &Project) -> Result<StateDir, Failure> {
    let group = project.spec.state_group.as_deref().map(find).transpose()?;
    StateDir::open_for(&project.spec.state_dir, group.as_ref(), &SystemProbe)
        .map_err(|error| render::runs(&error))
}

fn find(name: &str) -> Result<StateGroup, Failure> {
    let local = fs::read_to_string("/etc/group").ok().and_then(|groups| number_in(&groups, name));
    // Groups of a directory service are not in the file.
    let found = local.or_else(|| {
        let output = Command::new("getent").args(["group", "--", name]).output().ok()?;
        number_in(&String::from_utf8_lossy(&output.stdout), name)
    });
    match found {
        Some(gid) => Ok(StateGroup { name: name.to_owned(), gid }),
        None => Err(Failure::new(Exit::Refused, format!("this machine has no group `{name}`")).help(
            "`state.group` in lifeboat.yaml names a group of the system: make it, or correct the name",
        )),
    }
}

fn number_in(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nsre-old:x:41:ada\nsre:x:42:ada,sam\n";
        assert_eq!(number_in(groups, "sre"), Some(42));
        assert_eq!(number_in(groups, "sr"), None);
    }
}
