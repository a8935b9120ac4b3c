//! What the server says of a database that is dumped.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::super::connect::Client;
use super::super::database::PATIENT;

/// A database as it is in a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) major: u32,
    pub(super) version: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    pub(super) bytes: u64,
    pub(super) owners: Vec<String>,
    pub(super) grantees: Vec<String>,
    pub(super) extensions: BTreeMap<String, String>,
    pub(super) settings: Vec<String>,
}

/// A snapshot that other sessions can take on while its own session waits.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) id: String,
    /// Not later than the snapshot: all that was committed before it is in.
    pub(super) taken_at: Timestamp,
}

const FACTS: &str = "
    select current_setting('server_version_num')::int4, current_setting('server_version'),
      pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, pg_database_size(oid)
    from pg_database where datname = current_database()";

/// The catalogue of dependencies leaves out the role that `initdb` made.
const OWNERS: &str = "
    select r.rolname::text from pg_roles r
    where exists (select from pg_shdepend d where d.refclassid = 'pg_authid'::regclass and d.refobjid = r.oid
        and d.deptype = 'o' and d.dbid = (select oid from pg_database where datname = current_database()))
      or exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relowner = r.oid and n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
    order by 1";

const GRANTEES: &str = "
    select r.rolname::text from pg_roles r
    where exists (select from pg_shdepend d where d.refclassid = 'pg_authid'::regclass and d.refobjid = r.oid
        and d.deptype in ('a', 'r') and d.dbid = (select oid from pg_database where datname = current_database()))
    order by 1";

const SETTINGS: &str = "
    select unnest(setconfig) from pg_db_role_setting
    where setrole = 0 and setdatabase = (select oid from pg_database where datname = current_database()) order by 1";

/// Begins the transaction whose snapshot the dump is of. It ends with the connection.
pub(super) async fn snapshot(client: &Client, lock_timeout: Duration) -> Result<Snapshot, StepError> {
    let begin = format!(
        "begin transaction isolation level repeatable read, read only; set local lock_timeout = {}; \
         set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; \
         set local row_security = off",
        lock_timeout.as_millis()
    );
    client.batch(&begin, PATIENT).await?;
    // `now()` is when the transaction began, and the snapshot is taken by this statement.
    let row = client.query_one("select pg_export_snapshot(), now()", &[], PATIENT).await?;
    Ok(Snapshot { id: row.get(0), taken_at: row.get(1) })
}

/// Looks at the database.
pub(super) async fn read(client: &Client) -> Result<Source, StepError> {
    let row = client.query_one(FACTS, &[], PATIENT).await?;
    let extensions = client.query("select extname::text, extversion from pg_extension", &[], PATIENT).await?;
    Ok(Source {
        major: row.get::<_, i32>(0).unsigned_abs() / 10_000,
        version: row.get(1),
        encoding: row.get(2),
        collate: row.get(3),
        ctype: row.get(4),
        bytes: row.get::<_, i64>(5).unsigned_abs(),
        owners: texts(client, OWNERS).await?,
        grantees: texts(client, GRANTEES).await?,
        extensions: extensions.iter().map(|row| (row.get(0), row.get(1))).collect(),
        settings: texts(client, SETTINGS).await?,
    })
}

/// Runs a statement with one column of text.
pub(super) async fn texts(client: &Client, sql: &str) -> Result<Vec<String>, StepError> {
    let rows = client.query(sql, &[], PATIENT).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
