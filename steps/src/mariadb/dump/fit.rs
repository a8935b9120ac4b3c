//! Whether a dump can be restored into a server: looked at before the first write.

use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Client, QUICK, literal, text};
use super::super::facts::{self, Facts};
use super::super::{codes, tools};
use super::details::DumpDetails;

/// Refuses a server that does not fit the dump; returns warnings.
pub(super) async fn check(
    client: &mut Client,
    facts: &Facts,
    details: &DumpDetails,
) -> Result<Vec<String>, StepError> {
    let [names, read_only] = client.one("select @@lower_case_table_names, @@read_only").await?;
    let refuse = |message: String, help: &str| Err(StepError::permanent(codes::LB2034, message).help(help));
    if names != details.lower_case_table_names.to_string() {
        return refuse(
            format!(
                "the server has lower_case_table_names={names}, and the dump is of one with {}",
                details.lower_case_table_names
            ),
            "set it before the server's data directory is made (`lower_case_table_names` of mariadb.clone); nothing was touched",
        );
    }
    let from = facts::series(&details.server_version);
    if facts.series() < from {
        return refuse(
            format!("the server is MariaDB {}, and the dump is of {}", facts.version, details.server_version),
            "restore into the same series or a newer one; nothing was touched",
        );
    }
    if facts.scheduler == "ON" && details.structure.count("event") > 0 {
        return refuse(
            format!("the server runs events, and the dump holds {}", details.structure.count("event")),
            "they would write into the data while it is restored: `set global event_scheduler = off`; nothing was touched",
        );
    }
    let mut warnings = Vec::new();
    if facts.series() != from {
        warnings.push(format!(
            "the server is MariaDB {}, the dump of {}: let mariadb-upgrade and the application's tests decide",
            facts.version, details.server_version
        ));
    }
    if read_only == "1" {
        warnings.push("the server is read_only: only privileged accounts can write".to_owned());
    }
    Ok(warnings)
}

/// Returns the databases of these names that are there.
pub(super) async fn taken(client: &mut Client, names: &[String]) -> Result<Vec<String>, StepError> {
    let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "select schema_name from information_schema.schemata where schema_name in ({})",
        names.join(", ")
    );
    let rows = client.rows(&sql, QUICK).await?;
    Ok(rows.iter().map(|row| text(row, 0)).collect())
}

/// Returns the accounts that are there, as statements of a dump name them.
pub(super) async fn accounts(client: &mut Client) -> Result<Vec<String>, StepError> {
    let rows = client.rows("select user, host from mysql.global_priv where user <> ''", QUICK).await?;
    let names = rows.iter().map(|row| (text(row, 0), text(row, 1)));
    Ok(names.flat_map(|(user, host)| [format!("`{user}`@`{host}`"), format!("'{user}'@'{host}'")]).collect())
}

/// Says whether the client program understands the first line of newer dumps.
pub(super) async fn knows_sandbox(ctx: &StepContext, mariadb: &Mariadb) -> Result<bool, StepError> {
    let output = tools::bare(mariadb, "mariadb")?.arg("--version").quiet_stdout().run_checked(ctx).await?;
    Ok(is_new_enough(&output.stdout.text()))
}

/// Reads `mariadb  Ver 15.1 Distrib 10.11.19-MariaDB, …` or `mariadb from 11.4.2-MariaDB, …`.
fn is_new_enough(version: &str) -> bool {
    /// The first release of each series that knows it; later series all do.
    const FIRST: [(u32, u32, u32); 6] =
        [(10, 5, 25), (10, 6, 18), (10, 11, 8), (11, 0, 6), (11, 1, 5), (11, 2, 4)];
    let words = ["Distrib ", " from "];
    let rest = words.iter().find_map(|word| version.split_once(word)).map_or("", |(_, rest)| rest);
    let numbers: Vec<u32> =
        rest.split(['.', '-', ',']).take(3).map(|part| part.parse().unwrap_or(0)).collect();
    let [major, minor, patch] = numbers[..] else { return false };
    match FIRST.iter().find(|first| (first.0, first.1) == (major, minor)) {
        Some(first) => patch >= first.2,
        None => (major, minor) > (11, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_know_the_sandbox_are_told_from_others() {
        let debian = "/usr/bin/mariadb  Ver 15.1 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)";
        assert!(is_new_enough(debian));
        assert!(is_new_enough("mariadb from 11.4.2-MariaDB, client 15.2 for Linux"));
        for old in [
            "mysql  Ver 15.1 Distrib 10.11.6-MariaDB, for x",
            "mysql  Ver 8.0.36 for Linux",
            "Distrib 10.3.39-MariaDB",
        ] {
            assert!(!is_new_enough(old), "{old}");
        }
    }
}
