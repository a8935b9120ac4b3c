//! Renames of databases that happen together or not at all.
//!
//! `ALTER DATABASE … RENAME` takes part in transactions, so that between two renames there is no moment in which
//! nothing has the name. What does not take part is that nobody may be logged in: logins are closed first.

use std::time::{Duration, Instant};

use lifeboat_engine::step::StepError;
use serde::{Deserialize, Serialize};

use super::super::codes;
use super::super::connect::{Client, PgError};
use super::super::server::{Pace, QUICK};
use super::facts::{Facts, name_of, quoted, sessions};

/// How long ended sessions may take to be gone.
pub(super) const LEAVING: Duration = Duration::from_secs(20);
/// `object_in_use`
const IN_USE: &str = "55006";

/// Autovacuum is not ours to end; the server ends it itself when it renames.
const END: &str = "
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datid = $1 and pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')";

/// A rename of one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Move {
    pub(in super::super) oid: u32,
    pub(in super::super) from: String,
    pub(in super::super) to: String,
    /// Whether people could log in to it before.
    pub(in super::super) was_open: bool,
    /// Whether they can afterwards.
    pub(in super::super) opens: bool,
}

impl Move {
    /// Plans to rename a database; under its new name people can log in to it or not.
    pub(in super::super) fn new(database: &Facts, to: &str, opens: bool) -> Self {
        let (from, to) = (database.name.clone(), to.to_owned());
        Self { oid: database.oid, from, to, was_open: database.open, opens }
    }

    /// Returns the rename that takes this one back.
    fn reversed(&self) -> Self {
        Self {
            oid: self.oid,
            from: self.to.clone(),
            to: self.from.clone(),
            was_open: self.opens,
            opens: self.was_open,
        }
    }
}

/// Renames in their order: a name must be free when it is taken. Recorded before the first one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in super::super) struct Moves(pub(in super::super) Vec<Move>);

/// What to do about people who are logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Sessions {
    Refuse,
    Disconnect,
}

/// Where renames stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Stand {
    Before,
    After,
}

impl Moves {
    /// Finds out from the server whether they have happened.
    pub(in super::super) async fn stand(&self, client: &Client) -> Result<Stand, StepError> {
        let mut names = Vec::new();
        for one in &self.0 {
            names.push(name_of(client, one.oid).await?);
        }
        let all = |name: fn(&Move) -> &String| {
            self.0.iter().zip(&names).all(|(one, found)| found.as_ref() == Some(name(one)))
        };
        match () {
            () if all(|one| &one.to) => Ok(Stand::After),
            () if all(|one| &one.from) => Ok(Stand::Before),
            () => Err(self.changed(&names)),
        }
    }

    /// Does all of them, once: renames that have happened already are success.
    pub(in super::super) async fn make(&self, client: &Client, sessions: Sessions) -> Result<(), StepError> {
        if self.stand(client).await? == Stand::After {
            return Ok(());
        }
        if sessions == Sessions::Refuse {
            for one in &self.0 {
                refuse_sessions(client, one).await?;
            }
        }
        self.close_and_rename(client, sessions).await
    }

    /// Takes them back, once, and lets people log in where they could before.
    pub(in super::super) async fn take_back(&self, client: &Client) -> Result<(), StepError> {
        if self.stand(client).await? == Stand::Before {
            self.reopen(client).await;
            return Ok(());
        }
        let back = Self(self.0.iter().rev().map(Move::reversed).collect());
        back.close_and_rename(client, Sessions::Disconnect).await
    }

    /// Gives every database its earlier name back that is still called as it was left, at once. One that has its earlier name
    /// is as it should be; one that somebody has called otherwise keeps all of them where they are. Returns those that
    /// were moved aside and are gone; what took their place may be.
    pub(super) async fn put_back(&self, client: &Client) -> Result<Vec<Move>, StepError> {
        let (mut back, mut gone, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for one in &self.0 {
            names.push(name_of(client, one.oid).await?);
        }
        for (one, found) in self.0.iter().zip(&names) {
            match found {
                None if one.opens => {}
                None => gone.push(one.clone()),
                Some(name) if *name == one.to => back.push(one.reversed()),
                Some(name) if *name == one.from => {}
                Some(_) => return Err(self.changed(&names)),
            }
        }
        back.reverse();
        match back.is_empty() {
            true => self.reopen(client).await,
            false => Self(back).close_and_rename(client, Sessions::Disconnect).await?,
        }
        Ok(gone)
    }

    /// Closes logins, sees to sessions, renames. If it fails, people can log in again where they could before.
    async fn close_and_rename(&self, client: &Client, sessions: Sessions) -> Result<(), StepError> {
        let done = self.try_close_and_rename(client, sessions).await;
        if done.is_err() {
            // The transaction of a failed rename is still open.
            client.batch("rollback", QUICK).await.ok();
            self.reopen(client).await;
        }
        done
    }

    async fn try_close_and_rename(&self, client: &Client, sessions: Sessions) -> Result<(), StepError> {
        for one in &self.0 {
            admit(client, &one.from, false).await?;
        }
        for one in &self.0 {
            match sessions {
                // Somebody may have logged in between the first look and the closing.
                Sessions::Refuse => refuse_sessions(client, one).await?,
                Sessions::Disconnect => disconnect(client, one.oid).await?,
            }
        }
        client.batch(&format!("begin; {}", self.statements()), QUICK).await.map_err(|e| self.refused(e))?;
        // A rename takes a name; which database had it is seen before it counts.
        if self.stand(client).await? != Stand::After {
            return Err(StepError::permanent(
                codes::LB1804,
                format!("`{}` became another database meanwhile", self.0[0].from),
            )
            .help("nothing was renamed; look who makes and drops databases of this name, then try again"));
        }
        client.batch("commit", QUICK).await.map_err(|error| self.refused(error))
    }

    fn refused(&self, error: PgError) -> StepError {
        match error {
            PgError::Database(db) if db.sqlstate == IN_USE => in_use(&self.0[0].from, vec![db.to_string()]),
            PgError::Database(db) => StepError::permanent(
                codes::LB1803,
                format!("the database `{}` cannot be renamed: {db}", self.0[0].from),
            )
            .help("nothing was renamed; the role must own the database and have CREATEDB, or be a superuser"),
            lost => {
                let error = lost.into_step();
                StepError { kind: lifeboat_engine::model::outcome::FailureKind::Uncertain, ..error }
            }
        }
    }

    fn statements(&self) -> String {
        let one = |one: &Move| {
            let (from, to) = (quoted(&one.from), quoted(&one.to));
            format!(
                "alter database {from} rename to {to}; alter database {to} with allow_connections {};",
                one.opens
            )
        };
        self.0.iter().map(one).collect()
    }

    /// Lets people in again where they could log in before. What cannot be opened is named by its server.
    async fn reopen(&self, client: &Client) {
        for one in self.0.iter().filter(|one| one.was_open) {
            if let Err(error) = admit(client, &one.from, true).await {
                tracing::warn!("database `{}` stays closed: {error}", one.from);
            }
        }
    }

    fn changed(&self, names: &[Option<String>]) -> StepError {
        let found = self.0.iter().zip(names).map(|(one, name)| match name {
            Some(name) => format!("`{}` (oid {}) is `{name}` now", one.from, one.oid),
            None => format!("`{}` (oid {}) is gone", one.from, one.oid),
        });
        let found: Vec<_> = found.collect();
        StepError::permanent(
            codes::LB1804,
            format!("somebody has renamed or dropped databases of this step: {}", found.join(", ")),
        )
        .help("compare with `select oid, datname from pg_database`, put the names right by hand, then mark the step done or retry it")
    }
}

async fn admit(client: &Client, name: &str, open: bool) -> Result<(), StepError> {
    let sql = format!("alter database {} with allow_connections {open}", quoted(name));
    client.batch(&sql, QUICK).await.map_err(|error| {
        let error = error.into_step();
        StepError { message: format!("logins to `{name}` cannot be changed: {}", error.message), ..error }
    })
}

async fn refuse_sessions(client: &Client, one: &Move) -> Result<(), StepError> {
    let found = sessions(client, one.oid).await?;
    if found.is_empty() { Ok(()) } else { Err(in_use(&one.from, found)) }
}

fn in_use(name: &str, found: Vec<String>) -> StepError {
    let mut error = StepError::permanent(codes::LB1802, format!("the database `{name}` is in use"))
        .help("stop what uses it, or give the step `sessions: disconnect`; nothing was renamed or dropped");
    error.causes = found;
    error
}

/// Ends all sessions of a database and waits until they are gone.
pub(super) async fn disconnect(client: &Client, oid: u32) -> Result<(), StepError> {
    let (deadline, pace) = (Instant::now() + LEAVING, Pace::start());
    loop {
        let left: i64 = client.query_one(END, &[&oid], QUICK).await?.get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let name = name_of(client, oid).await?.unwrap_or_default();
            return Err(in_use(&name, sessions(client, oid).await?));
        }
        tokio::time::sleep(pace.pause()).await;
    }
}
