//! Databases that a run makes or renames on a server that is not its own, and how a drill takes that back.
//!
//! The journal keeps a handle before anything is done. While a database is made, it has a name that holds the run, so that
//! whoever finds that name knows whose it is; from then on it is known by its oid. What the handle does not describe to
//! the letter stays as it is, with the reason.

use std::time::Instant;

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::resource::{in_words, maker};
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::connect::{Client, Login};
use super::super::isolation::Isolation;
use super::super::server::{Pace, QUICK};
use super::super::{codes, local};
use super::facts::{PATIENT, connect_beside, find, name_of, quoted, stamped};
use super::moves::{LEAVING, Move, Moves, Sessions};

/// What the journal knows of databases that a step has made or renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Handle {
    /// A database is made: it is dropped again.
    Made {
        /// The identifier of the server's cluster.
        system: String,
        /// Unknown until it is made; then only the first name counts, which nothing else has.
        oid: Option<u32>,
        /// What it is called while it is made, and afterwards.
        names: Vec<String>,
    },
    /// Databases are renamed: they get their earlier names back.
    Renamed { system: String, moves: Moves },
}

/// One database in the making.
#[derive(Clone, Debug)]
pub(in super::super) struct Making<'a> {
    pub(in super::super) cluster: &'a str,
    /// Its name while it is made, which nothing else has.
    pub(in super::super) scratch: &'a str,
    /// Its name afterwards.
    pub(in super::super) database: &'a str,
}

impl Making<'_> {
    /// Records that the database is about to be made; with its oid, that it is.
    pub(in super::super) async fn record(
        &self,
        ctx: &StepContext,
        client: &Client,
        oid: Option<u32>,
    ) -> Result<(), StepError> {
        let names = vec![self.scratch.to_owned(), self.database.to_owned()];
        let what = format!("database `{}` on {}", self.database, in_words(self.cluster));
        let handle = Handle::Made { system: system(client).await?, oid, names };
        record(ctx, (made_id(ctx), what), (self.cluster, handle)).await
    }
}

/// Records that databases are about to be renamed.
pub(in super::super) async fn record_moves(
    ctx: &StepContext,
    client: &Client,
    (cluster, moves): (&str, &Moves),
) -> Result<(), StepError> {
    let names: Vec<_> = moves.0.iter().map(|one| format!("`{}` to `{}`", one.from, one.to)).collect();
    let what = format!("renaming of the database {} on {}", names.join(" and of "), in_words(cluster));
    let handle = Handle::Renamed { system: system(client).await?, moves: moves.clone() };
    record(ctx, (moved_id(ctx), what), (cluster, handle)).await
}

/// Records that what the step has made is gone.
pub(in super::super) async fn made_is_gone(ctx: &StepContext, name: &str) -> Result<(), StepError> {
    ctx.removed(&made_id(ctx), &format!("the database `{name}` does not exist")).await
}

/// Records that databases which the step has renamed have their earlier names.
pub(in super::super) async fn moves_are_back(ctx: &StepContext, moves: &Moves) -> Result<(), StepError> {
    ctx.removed(&moved_id(ctx), &back_in_place(&moves.0)).await
}

fn made_id(ctx: &StepContext) -> String {
    format!("database:{}", ctx.info.step)
}

fn moved_id(ctx: &StepContext) -> String {
    format!("databases-moved:{}", ctx.info.step)
}

/// On a server that the run itself has made nothing is recorded: it is removed whole.
async fn record(
    ctx: &StepContext,
    (id, what): (String, String),
    (cluster, handle): (&str, Handle),
) -> Result<(), StepError> {
    if is_of_this_run(ctx, cluster)? {
        return Ok(());
    }
    let handle = serde_json::to_value(handle).expect("a handle is JSON");
    let kind = CreatedKind::Within { resource: cluster.to_owned(), handle };
    ctx.created(Created { id, what, kind }).await
}

fn is_of_this_run(ctx: &StepContext, cluster: &str) -> Result<bool, StepError> {
    if maker(cluster).is_some() {
        return Ok(true);
    }
    let served = local::cluster(ctx, cluster)?.data_dir.as_deref().and_then(Isolation::serving);
    Ok(served.is_some_and(|served| served.run == ctx.info.run.to_string()))
}

async fn system(client: &Client) -> Result<String, StepError> {
    let sql = "select system_identifier::text from pg_control_system()";
    Ok(client.query_one(sql, &[], QUICK).await?.get(0))
}

/// Drops what a step has made, or gives back the names that it has taken, and says how that is known.
pub(in super::super) async fn clean_up(
    ctx: &StepContext,
    cluster: &str,
    handle: &Value,
) -> Result<String, StepError> {
    let handle: Handle = serde_json::from_value(handle.clone()).map_err(|error| {
        stays(format!("what the journal keeps of it cannot be read: {error}"))
            .help("resume with the version of Lifeboat that began the run, or look at the databases yourself")
    })?;
    let login = Login::of(ctx, local::cluster(ctx, cluster)?)?;
    let names = handle.names();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let client = connect_beside(&login, &names).await?;
    let found = system(&client).await?;
    if found != *handle.system() {
        return Err(stays(format!(
            "the server at {} is another one now: its system identifier is {found}, not {}",
            login.endpoint,
            handle.system()
        )));
    }
    match handle {
        Handle::Made { oid, names, .. } => drop_made(ctx, &client, (oid, &names)).await,
        Handle::Renamed { moves, .. } => {
            let gone = moves.put_back(&client).await?;
            if gone.is_empty() { Ok(back_in_place(&moves.0)) } else { Err(lost(&gone)) }
        }
    }
}

impl Handle {
    fn system(&self) -> &String {
        match self {
            Self::Made { system, .. } | Self::Renamed { system, .. } => system,
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Made { names, .. } => names.clone(),
            Self::Renamed { moves, .. } => {
                moves.0.iter().flat_map(|one| [one.from.clone(), one.to.clone()]).collect()
            }
        }
    }
}

fn back_in_place(moves: &[Move]) -> String {
    let names: Vec<_> = moves.iter().map(|one| format!("`{}`", one.from)).collect();
    let have = if names.len() == 1 { "has its name" } else { "have their names" };
    format!("{} {have} again", names.join(" and "))
}

fn stays(why: String) -> StepError {
    StepError::permanent(codes::LB1853, why)
        .help("nothing was dropped or renamed; compare with `select oid, datname from pg_database`")
}

fn lost(gone: &[Move]) -> StepError {
    let names: Vec<_> = gone.iter().map(|one| format!("`{}`", one.from)).collect();
    stays(format!("{} was moved aside by this step, and is gone: somebody has dropped it", names.join(", ")))
}

async fn drop_made(
    ctx: &StepContext,
    client: &Client,
    (oid, names): (Option<u32>, &[String]),
) -> Result<String, StepError> {
    let [scratch, ..] = names else { return Err(stays("the journal names no database".to_owned())) };
    end_making(client, scratch).await?;
    let oid = match oid {
        Some(oid) => oid,
        // Killed between making it and writing down what it became: the name holds the run, so it is ours.
        None => match oid_of(client, scratch).await? {
            Some(oid) => oid,
            None => return Ok(format!("the database `{scratch}` does not exist")),
        },
    };
    let doomed = stamped(scratch, &format!("_drop_{}", ctx.info.run.short()));
    match name_of(client, oid).await? {
        None => {}
        Some(name) if name == doomed => drop_named(client, oid, &doomed).await?,
        Some(name) if names.contains(&name) => {
            drop_database(client, (oid, &name), &doomed).await?;
        }
        Some(name) => {
            let shown = names.last().unwrap_or(scratch);
            return Err(stays(format!(
                "the database that the step made as `{shown}` (oid {oid}) is called `{name}` now: somebody has renamed it"
            )));
        }
    }
    let name = names.last().unwrap_or(scratch);
    Ok(format!("the database `{name}` (oid {oid}) does not exist"))
}

/// Drops a database by its oid: `DROP DATABASE` takes a name only, and cannot be taken back. So the database is renamed first,
/// in a transaction that compares the oid, to what nothing else is called.
async fn drop_database(client: &Client, (oid, name): (u32, &str), doomed: &str) -> Result<(), StepError> {
    let Some(found) = find(client, name).await?.filter(|found| found.oid == oid) else {
        return Err(stays(format!("`{name}` became another database meanwhile")));
    };
    match Moves(vec![Move::new(&found, doomed, false)]).make(client, Sessions::Disconnect).await {
        Ok(()) => drop_named(client, oid, doomed).await,
        // An earlier process was killed while the server dropped it, and the server went on.
        Err(_) if name_of(client, oid).await?.is_none() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn drop_named(client: &Client, oid: u32, name: &str) -> Result<(), StepError> {
    let dropped = client.batch(&format!("drop database {} with (force)", quoted(name)), PATIENT).await;
    match (dropped, name_of(client, oid).await?) {
        (_, None) => Ok(()),
        (Err(error), Some(_)) => {
            let error = error.into_step();
            Err(StepError { message: format!("`{name}` cannot be dropped: {}", error.message), ..error })
        }
        (Ok(()), Some(name)) => Err(stays(format!("the database `{name}` (oid {oid}) is still there"))),
    }
}

async fn oid_of(client: &Client, name: &str) -> Result<Option<u32>, StepError> {
    let rows = client.query("select oid from pg_database where datname = $1", &[&name], QUICK).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Ends the statement of a killed process that still makes a database of this name, and waits until it is gone: otherwise
/// the database would appear after somebody has found that there is none.
pub(in super::super) async fn end_making(client: &Client, scratch: &str) -> Result<(), StepError> {
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where pid <> pg_backend_pid() and state = 'active' and starts_with(query, $1)";
    let statement = format!("create database {} ", quoted(scratch));
    let (deadline, pace) = (Instant::now() + LEAVING, Pace::start());
    loop {
        let left: i64 = client.query_one(sql, &[&statement], QUICK).await?.get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message =
                format!("the server is still making the database `{scratch}` for an earlier attempt");
            return Err(StepError::transient(codes::LB1802, message)
                .help("see `select pid, query from pg_stat_activity`; end that session, then try again"));
        }
        tokio::time::sleep(pace.pause()).await;
    }
}
