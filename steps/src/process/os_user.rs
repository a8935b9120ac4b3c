use std::path::PathBuf;
use std::process;

use lifeboat_engine::step::StepError;
use rustix::process::{Gid, Uid};

use super::codes;

/// A user of this machine, as a program can run as it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

impl OsUser {
    /// Looks a user up by name, in the machine's directory (`getent`) or in `/etc/passwd`.
    pub fn lookup(name: &str) -> Result<Self, StepError> {
        let entry = passwd_entry(name).ok_or_else(|| unknown(name))?;
        let mut user = parse_passwd(&entry).filter(|user| user.name == name).ok_or_else(|| unknown(name))?;
        user.groups = groups(&user);
        Ok(user)
    }

    /// Looks a user up by number; `None` if the machine has no name for it.
    pub fn by_uid(uid: u32) -> Option<Self> {
        let entry = tool("getent", &["passwd", "--", &uid.to_string()])?;
        let mut user = parse_passwd(&entry).filter(|user| user.uid == uid)?;
        user.groups = groups(&user);
        Some(user)
    }

    /// Says whether this process already runs as this user.
    pub fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.uid
    }

    /// Returns the user to switch to, `None` if this process is that user already.
    pub(super) fn to_switch_to(name: &str) -> Result<Option<Self>, StepError> {
        let user = Self::lookup(name)?;
        if user.is_current() {
            return Ok(None);
        }
        if !rustix::process::geteuid().is_root() {
            let uid = rustix::process::geteuid().as_raw();
            return Err(StepError::permanent(
                codes::LB1005,
                format!("a program must run as `{name}`, but Lifeboat runs as uid {uid} and only root can switch users"),
            )
            .help(format!("run Lifeboat as root or as `{name}`")));
        }
        Ok(Some(user))
    }

    /// Makes the calling process this user for good. Only for a child between fork and exec.
    pub(super) fn become_it(uid: u32, gid: u32, groups: &[Gid]) -> std::io::Result<()> {
        rustix::thread::set_thread_groups(groups)?;
        rustix::thread::set_thread_gid(Gid::from_raw(gid))?;
        rustix::thread::set_thread_uid(Uid::from_raw(uid))?;
        Ok(())
    }
}

fn unknown(name: &str) -> StepError {
    StepError::permanent(codes::LB1006, format!("this machine has no user `{name}`")).help(format!(
        "correct `os_user` in the environment's file; `getent passwd {name}` shows whether it exists"
    ))
}

fn passwd_entry(name: &str) -> Option<String> {
    let from_directory = tool("getent", &["passwd", "--", name]);
    from_directory.or_else(|| {
        let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find(|line| line.split(':').next() == Some(name)).map(ToOwned::to_owned)
    })
}

fn parse_passwd(entry: &str) -> Option<OsUser> {
    let mut fields = entry.trim_end().split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = PathBuf::from(fields.nth(1)?);
    Some(OsUser { name, uid, gid, groups: vec![gid], home })
}

fn groups(user: &OsUser) -> Vec<u32> {
    let listed = tool("id", &["-G", "--", &user.name]).unwrap_or_default();
    let mut groups: Vec<u32> = listed.split_whitespace().filter_map(|group| group.parse().ok()).collect();
    if !groups.contains(&user.gid) {
        groups.insert(0, user.gid);
    }
    groups
}

/// Runs one of the machine's own look-up tools, which answer at once.
fn tool(program: &str, args: &[&str]) -> Option<String> {
    let output = process::Command::new(program).args(args).stdin(process::Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_is_read() {
        let user =
            parse_passwd("postgres:x:104:112:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n");
        let user = user.expect("a valid line");
        assert_eq!((user.name.as_str(), user.uid, user.gid), ("postgres", 104, 112));
        assert_eq!(user.home, PathBuf::from("/var/lib/postgresql"));
        assert!(parse_passwd("postgres:x:not-a-number:1::/:").is_none());
    }

    #[test]
    fn root_is_found_and_an_unknown_name_is_an_error() {
        let root = OsUser::lookup("root").expect("every machine has root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        let error = OsUser::lookup("no-such-user-here").expect_err("unknown");
        assert_eq!(error.code, codes::LB1006);
        assert_eq!(OsUser::lookup("-x").expect_err("no option injection").code, codes::LB1006);
    }
}
