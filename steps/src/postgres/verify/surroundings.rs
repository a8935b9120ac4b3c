//! What a database needs of the machine it has come to: extensions with their libraries, and collations that sort as they
//! did.

use std::collections::BTreeMap;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;

use super::super::connect::PgError;
use super::findings::{Database, Findings};

const EXTENSIONS: &str = "
    select format('%I', x.extname), x.extversion, a.name is not null
    from pg_extension x left join pg_available_extensions a on a.name = x.extname order by 1";

/// Functions in C, of extensions or not; those of the server itself are in it.
const LIBRARIES: &str = "
    select p.probin::text, p.oid from pg_proc p join pg_language l on l.oid = p.prolang
    where l.lanname = 'c' and p.probin is not null order by 1, 2";

/// Collations of which a column or an index makes use.
const COLLATIONS: &str = "
    select format('%s', c.oid::regcollation), c.collversion, pg_collation_actual_version(c.oid)
    from pg_collation c
    where c.collversion is not null
      and (exists (select from pg_attribute a join pg_class r on r.oid = a.attrelid
                   where a.attcollation = c.oid and a.attnum > 0 and r.relkind in ('r', 'p', 'm'))
           or exists (select from pg_index i where c.oid = any (i.indcollation)))
    order by 1";

/// Since Postgres 15.
const OWN_COLLATION: &str = "
    select format('%I', datname), datcollversion, pg_database_collation_actual_version(oid)
    from pg_database where datname = current_database() and datcollversion is not null";

/// Makes all checks of a database.
pub(super) async fn check(database: &Database<'_>) -> Result<Vec<Check>, StepError> {
    Ok(vec![
        database.report("extensions are installed", "extensions and libraries", extensions(database).await?),
        database.report("collations sort as they did", "collations", collations(database).await?),
    ])
}

async fn extensions(database: &Database<'_>) -> Result<Findings, StepError> {
    let rows = database.rows(EXTENSIONS).await?;
    let mut found = Findings { looked_at: rows.len(), ..Findings::default() };
    for row in rows.iter().filter(|row| !row.get::<_, bool>(2)) {
        let (name, version): (String, String) = (row.get(0), row.get(1));
        found.wrong.push((name, format!("{version} is not installed on this machine")));
    }
    let mut libraries = BTreeMap::<String, Vec<u32>>::new();
    for row in &database.rows(LIBRARIES).await? {
        libraries.entry(row.get(0)).or_default().push(row.get(1));
    }
    found.looked_at += libraries.len();
    for (library, functions) in libraries {
        if let Some(problem) = loaded(database, &functions, &mut found.notes).await? {
            found.wrong.push((library, problem));
        }
    }
    Ok(found)
}

/// Lets the server load each function, as its first use would. Returns what is missing.
async fn loaded(
    database: &Database<'_>,
    functions: &[u32],
    notes: &mut Vec<String>,
) -> Result<Option<String>, StepError> {
    const NO_FILE: &str = "58P01";
    const NO_FUNCTION: &str = "42883";
    const DENIED: &str = "42501";
    for function in functions {
        let asked = database.client.query("select fmgr_c_validator($1)", &[function], database.limit).await;
        match asked {
            Ok(_) => {}
            Err(PgError::Database(error)) if [NO_FILE, NO_FUNCTION].contains(&error.sqlstate.as_str()) => {
                return Ok(Some(format!("cannot be loaded: {}", error.message)));
            }
            Err(PgError::Database(error)) if error.sqlstate == DENIED => {
                notes.push("libraries were not loaded: the role may not".to_owned());
                return Ok(None);
            }
            // It is there and has demands of its own, such as to be loaded when the server starts.
            Err(PgError::Database(_)) => return Ok(None),
            Err(error) => return Err(database.failed(error)),
        }
    }
    Ok(None)
}

async fn collations(database: &Database<'_>) -> Result<Findings, StepError> {
    let mut rows = database.rows(COLLATIONS).await?;
    let mut notes = Vec::new();
    match database.server.major {
        15.. => rows.extend(database.rows(OWN_COLLATION).await?),
        _ => notes.push("the version of the database's own is not known before Postgres 15".to_owned()),
    }
    let mut found = Findings { looked_at: rows.len(), notes, ..Findings::default() };
    for row in &rows {
        let (name, then, now): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
        if now.as_ref() != Some(&then) {
            let now = now.unwrap_or_else(|| "unknown".to_owned());
            let problem =
                format!("was version {then} and is {now} here: reindex what it sorts (`reindex database`)");
            found.wrong.push((name, problem));
        }
    }
    Ok(found)
}
