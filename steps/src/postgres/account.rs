//! The system user that owns a server.

use std::os::unix::fs::MetadataExt;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::StepError;

use super::codes;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// Returns the account that must own the server of a resource and its files, or `None` if that is whoever runs
    /// Lifeboat. As root it is `os_user`, or else the owner of the data directory; root itself is refused.
    pub fn of(postgres: &Postgres) -> Result<Option<Self>, StepError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        match &postgres.os_user {
            Some(name) => Self::look_up(name).and_then(Self::not_root).map(Some),
            None => Self::owner_of_data(postgres).and_then(Self::not_root).map(Some),
        }
    }

    fn owner_of_data(postgres: &Postgres) -> Result<Self, StepError> {
        let owner = postgres.data_dir.as_ref().and_then(|dir| std::fs::metadata(dir).ok());
        match owner {
            Some(owner) => Self::look_up(&owner.uid().to_string()),
            None => Err(StepError::permanent(
                codes::LB1248,
                "Lifeboat runs as root, and the Postgres resource does not say which system user owns the server",
            )
            .help("add `os_user: postgres` to the resource in the environment's file")),
        }
    }

    fn not_root(self) -> Result<Self, StepError> {
        if self.uid != 0 {
            return Ok(self);
        }
        Err(StepError::permanent(codes::LB1248, "Postgres refuses to run as root")
            .help("set `os_user: postgres` on the resource in the environment's file"))
    }

    /// Finds an account by name or number in the system's user database, network directories included.
    pub fn look_up(name: &str) -> Result<Self, StepError> {
        let unknown = || {
            StepError::permanent(codes::LB1248, format!("this machine has no user `{name}`"))
                .help(format!("check with `getent passwd {name}`, or correct `os_user` of the resource"))
        };
        let found = std::process::Command::new("getent")
            .args(["passwd", "--", name])
            .output()
            .map_err(|error| unknown().caused_by(&error))?;
        let text = String::from_utf8_lossy(&found.stdout);
        Self::parse(text.lines().next().unwrap_or_default()).ok_or_else(unknown)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line_is_read() {
        let line = "postgres:x:103:106:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        assert_eq!(Account::parse(line), Some(Account { name: "postgres".into(), uid: 103, gid: 106 }));
        assert_eq!(Account::parse(""), None);
    }

    #[test]
    fn an_unknown_user_is_named() {
        let error = Account::look_up("no_such_user_here").expect_err("must not exist");
        assert_eq!(error.code, codes::LB1248);
        assert!(error.message.contains("no_such_user_here"));
        assert_eq!(Account::look_up("root").expect("root exists").uid, 0);
    }
}
