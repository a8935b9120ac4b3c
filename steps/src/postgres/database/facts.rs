//! What a server says of its databases, and how they are named.

use std::time::Duration;

use lifeboat_engine::step::StepError;

use super::super::codes;
use super::super::connect::{Client, Login};
use super::super::server::QUICK;

/// Names of databases have at most this many bytes.
const LONGEST: usize = 63;
/// Every server has one of these to log in to.
const ALWAYS_THERE: [&str; 2] = ["postgres", "template1"];
/// How many sessions are named in an error.
const SHOWN: i64 = 10;

/// One database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Facts {
    pub(in super::super) oid: u32,
    pub(in super::super) name: String,
    pub(in super::super) owner: String,
    pub(in super::super) encoding: String,
    pub(in super::super) bytes: u64,
    /// Whether anybody may log in to it.
    pub(in super::super) open: bool,
    pub(in super::super) template: bool,
    /// Sessions other than this one.
    pub(in super::super) sessions: u64,
}

const FACTS: &str = "
    select d.oid, d.datname::text, pg_get_userbyid(d.datdba)::text, pg_encoding_to_char(d.encoding)::text,
      pg_database_size(d.oid), d.datallowconn, d.datistemplate,
      (select count(*) from pg_stat_activity a where a.datid = d.oid and a.pid <> pg_backend_pid()
        and a.backend_type in ('client backend', 'walsender'))
    from pg_database d where d.datname = $1";

const SESSIONS: &str = "
    select format('%s (process %s%s%s)', coalesce(nullif(application_name, ''), backend_type, 'somebody'), pid,
      ', role ' || usename, ', from ' || coalesce(host(client_addr), case when client_port = -1 then 'this machine' end))
    from pg_stat_activity where datid = $1 and pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')
    order by pid limit $2";

/// Returns what is known of a database, `None` if there is none of that name.
pub(in super::super) async fn find(client: &Client, name: &str) -> Result<Option<Facts>, StepError> {
    let rows = client.query(FACTS, &[&name], QUICK).await?;
    Ok(rows.first().map(|row| Facts {
        oid: row.get(0),
        name: row.get(1),
        owner: row.get(2),
        encoding: row.get(3),
        bytes: row.get::<_, i64>(4).unsigned_abs(),
        open: row.get(5),
        template: row.get(6),
        sessions: row.get::<_, i64>(7).unsigned_abs(),
    }))
}

/// Returns the present name of a database, `None` if it is gone.
pub(in super::super) async fn name_of(client: &Client, oid: u32) -> Result<Option<String>, StepError> {
    let rows = client.query("select datname::text from pg_database where oid = $1", &[&oid], QUICK).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Names the sessions of a database, for people: the first few.
pub(super) async fn sessions(client: &Client, oid: u32) -> Result<Vec<String>, StepError> {
    let rows = client.query(SESSIONS, &[&oid, &SHOWN], QUICK).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Connects to a database of the server that is none of these.
pub(in super::super) async fn connect_beside(login: &Login, avoid: &[&str]) -> Result<Client, StepError> {
    let wanted = std::iter::once(login.database.as_str()).chain(ALWAYS_THERE);
    let name = wanted.into_iter().find(|name| !avoid.contains(name)).unwrap_or(ALWAYS_THERE[1]);
    let client = login.database(name).connect().await?;
    let standby: bool = client.query_one("select pg_is_in_recovery()", &[], QUICK).await?.get(0);
    if standby {
        return Err(StepError::permanent(
            codes::LB1807,
            "the server is in recovery and takes no writes: its databases cannot be changed",
        )
        .help("promote it first (`postgres.promote`), or name the primary"));
    }
    Ok(client)
}

/// Writes a name as SQL takes it.
pub(in super::super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Writes a text as SQL takes it, whatever `standard_conforming_strings` says.
pub(in super::super) fn text(value: &str) -> String {
    let plain = value.replace('\'', "''");
    if plain.contains('\\') { format!("E'{}'", plain.replace('\\', "\\\\")) } else { format!("'{plain}'") }
}

/// Returns a name with an ending, the name cut where both would be too long.
pub(in super::super) fn stamped(name: &str, ending: &str) -> String {
    let mut room = LONGEST.saturating_sub(ending.len()).min(name.len());
    while !name.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{ending}", &name[..room])
}

/// Refuses what cannot be the name of a database.
pub(in super::super) fn check_name(name: &str) -> Result<(), StepError> {
    let problem = match () {
        () if name.is_empty() => "is empty",
        () if name.len() > LONGEST => "has more than 63 bytes, and Postgres would cut it",
        () if name.contains('\0') => "holds a zero byte",
        () => return Ok(()),
    };
    Err(StepError::permanent(codes::LB1806, format!("the name `{name}` of a database {problem}"))
        .help("give a name of 1 to 63 bytes"))
}

/// Refuses databases that a server cannot do without.
pub(super) fn refuse_own(name: &str) -> Result<(), StepError> {
    if !matches!(name, "postgres" | "template0" | "template1") {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB1805, format!("`{name}` belongs to the server itself"))
        .help("name a database of your own"))
}

pub(super) fn missing(name: &str, place: &str) -> StepError {
    StepError::permanent(codes::LB1801, format!("there is no database `{name}` on {place}"))
        .help("list them with: select datname from pg_database order by 1")
}

/// Long enough for any statement that a person would wait for; the attempt's own time limit ends it earlier.
pub(in super::super) const PATIENT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_so_that_the_ending_stays() {
        assert_eq!(stamped("members", "_pre_1a2b3c4d"), "members_pre_1a2b3c4d");
        let long = stamped(&"é".repeat(40), "_pre_1a2b3c4d");
        assert!(long.len() <= LONGEST && long.ends_with("é_pre_1a2b3c4d"), "{long}");
    }

    #[test]
    fn quotes_in_names_and_texts_stay_within_them() {
        assert_eq!(quoted("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(text("it's"), "'it''s'");
        assert_eq!(text("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn impossible_names_are_refused() {
        assert!(check_name("members").is_ok());
        assert_eq!(check_name("").unwrap_err().code, codes::LB1806);
        assert_eq!(check_name(&"x".repeat(64)).unwrap_err().code, codes::LB1806);
        assert!(refuse_own("template1").is_err() && refuse_own("members").is_ok());
    }
}
