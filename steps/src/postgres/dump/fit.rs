//! Finds out before the first write whether a dump can be restored on a server.

use std::collections::BTreeSet;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::connect::Client;
use super::super::database::PATIENT;
use super::super::server::QUICK;
use super::super::tools::Tools;
use super::details::DumpDetails;
use super::source::texts;
use crate::probe::{bytes, free_space};

/// The server that a dump is restored on.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) major: u32,
    pub(super) version: String,
    may_create: bool,
    is_superuser: bool,
}

/// What the step does to owners and grants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roles<'a> {
    /// Owns everything, if set.
    pub(super) owner: Option<&'a str>,
    pub(super) keep_grants: bool,
}

/// Asks the server what it is.
pub(super) async fn server(client: &Client) -> Result<Server, StepError> {
    let sql = "select current_setting('server_version_num')::int4, current_setting('server_version'),
        coalesce(rolcreatedb or rolsuper, false), coalesce(rolsuper, false) from pg_roles where rolname = current_user";
    let row = client.query_one(sql, &[], QUICK).await?;
    Ok(Server {
        major: row.get::<_, i32>(0).unsigned_abs() / 10_000,
        version: row.get(1),
        may_create: row.get(2),
        is_superuser: row.get(3),
    })
}

/// Checks all that can be told from the dump's description, and names every reason why it does not fit. Returns
/// warnings.
pub(super) async fn check(
    client: &Client,
    (server, details): (&Server, &DumpDetails),
    (postgres, roles): (&Postgres, Roles<'_>),
) -> Result<Vec<String>, StepError> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    if !server.may_create {
        problems.push("the role may not create databases (alter role … createdb)".to_owned());
    }
    missing_roles(client, details, roles, &mut problems).await?;
    extensions(client, details, (&mut problems, &mut warnings)).await?;
    if !server.is_superuser && roles.owner.is_none() {
        warnings.push(
            "the role is no superuser: objects of roles that it is no member of cannot be restored".into(),
        );
    }
    if server.major < details.server_major {
        warnings.push(format!(
            "the dump is of Postgres {}, and the server is Postgres {}: what that does not know fails the restore",
            details.server_major, server.major
        ));
    }
    problems.extend(room(postgres, details.database_bytes));
    refuse(problems)?;
    Ok(warnings)
}

/// Refuses programs that are older than the one that wrote the dump.
pub(super) fn check_tools(tools: &Tools, dumped_by: Option<u32>) -> Result<(), StepError> {
    match dumped_by.filter(|&major| major > tools.version.major) {
        None => Ok(()),
        Some(major) => Err(StepError::permanent(
            codes::LB1281,
            format!(
                "the dump was written by pg_dump {major}, which pg_restore {} cannot read",
                tools.version
            ),
        )
        .help(format!(
            "install the programs of Postgres {major} or newer, and point `bin_dir` of the resource at them"
        ))),
    }
}

/// Refuses with all problems at once.
pub(super) fn refuse(problems: Vec<String>) -> Result<(), StepError> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1281,
        format!("the dump cannot be restored on this server: {}", problems.join("; ")),
    )
    .help("mend these on the server, or say `owner` and `privileges: skip`; nothing was written"))
}

async fn missing_roles(
    client: &Client,
    details: &DumpDetails,
    roles: Roles<'_>,
    problems: &mut Vec<String>,
) -> Result<(), StepError> {
    let known: BTreeSet<_> = texts(client, "select rolname::text from pg_roles").await?.into_iter().collect();
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    match roles.owner {
        Some(owner) => drop(needed.insert(owner)),
        None => needed.extend(details.owners.iter().map(String::as_str)),
    }
    if roles.keep_grants {
        needed.extend(details.grantees.iter().map(String::as_str));
    }
    let missing: Vec<_> = needed.into_iter().filter(|role| !known.contains(*role)).collect();
    if !missing.is_empty() {
        problems.push(format!("roles are missing: {}", missing.join(", ")));
    }
    Ok(())
}

async fn extensions(
    client: &Client,
    details: &DumpDetails,
    (problems, warnings): (&mut Vec<String>, &mut Vec<String>),
) -> Result<(), StepError> {
    let sql = "select name::text, coalesce(default_version, '') from pg_available_extensions";
    let rows = client.query(sql, &[], PATIENT).await?;
    for (name, version) in &details.extensions {
        let found = rows.iter().find(|row| row.get::<_, &str>(0) == name).map(|row| row.get::<_, &str>(1));
        match found {
            None => problems.push(format!("the extension {name} {version} is not installed")),
            Some(here) if here != version => {
                warnings
                    .push(format!("the extension {name} is {version} in the dump and {here} on this server"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The new database needs the space of the old one. Where the data directory cannot be seen nothing is known.
fn room(postgres: &Postgres, needed: u64) -> Option<String> {
    let dir = postgres.data_dir.as_ref()?;
    let free = free_space(dir).ok()?;
    let place = dir.display();
    (free < needed)
        .then(|| format!("{place} has {} free, and the database takes {}", bytes(free), bytes(needed)))
}
