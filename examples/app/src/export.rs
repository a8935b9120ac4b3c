//! `member-app export` and `member-app reconcile`: all payments in a file, and that file against the database.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use tokio_postgres::IsolationLevel;

use crate::error::{AnyError, database_message};
use crate::{database, files, uploads};

const HEADER: [&str; 6] = ["reference", "member_id", "amount_cents", "method", "corrects", "entered_at"];
/// How many differences are printed.
const SHOWN: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file with all payments.
    file: PathBuf,
    /// The database, as postgresql://user@host:port/name.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
}

/// The fields of a payment after its reference, as a file says them.
type Fields = Vec<String>;
type Payments = BTreeMap<String, Fields>;

/// Writes the file and prints its totals as a line of JSON.
pub(crate) async fn write(args: &Args) -> Result<(), AnyError> {
    let payments = payments(&args.database_url).await?;
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER)?;
    for (reference, fields) in &payments {
        writer.write_record(std::iter::once(reference).chain(fields))?;
    }
    let bytes = writer.into_inner().map_err(|error| error.to_string())?;
    files::replace(&args.file, &bytes)?;
    let (rows, amount_cents, corrections) = totals(&payments);
    println!(
        "{}",
        json!({"rows": rows, "amount_cents": amount_cents, "corrections": corrections, "sha256": uploads::checksum(&bytes)})
    );
    Ok(())
}

/// Prints what differs, and the totals as a line of JSON; exit status 1 if anything does.
pub(crate) async fn reconcile(args: &Args) -> Result<ExitCode, AnyError> {
    let exported = read(&args.file)?;
    let there = payments(&args.database_url).await?;
    let differences = compare(&exported, &there);
    differences.iter().take(SHOWN).for_each(|difference| eprintln!("{difference}"));
    if let Some(more) = differences.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        eprintln!("and {more} more");
    }
    let (rows, amount_cents, corrections) = totals(&exported);
    let (database_rows, database_cents, _) = totals(&there);
    println!(
        "{}",
        json!({
            "rows": rows, "amount_cents": amount_cents, "corrections": corrections, "database_rows": database_rows,
            "database_cents": database_cents, "differences": differences.len(),
        })
    );
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn payments(url: &str) -> Result<Payments, AnyError> {
    let mut client = database::connect(&database::parse(url)?).await?;
    let told = |error: tokio_postgres::Error| database_message(&error);
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = transaction.start().await.map_err(told)?;
    transaction.batch_execute("SET LOCAL timezone = 'UTC'").await.map_err(told)?;
    let rows = "
        SELECT p.reference, p.member_id::text, p.amount_cents::text, p.method, coalesce(o.reference, ''),
            to_char(p.entered_at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
        FROM payments p LEFT JOIN payments o ON o.id = p.corrects";
    let rows = transaction.query(rows, &[]).await.map_err(told)?;
    Ok(rows.iter().map(|row| (row.get(0), (1..HEADER.len()).map(|at| row.get(at)).collect())).collect())
}

fn read(path: &Path) -> Result<Payments, AnyError> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", path.display());
    let mut reader = csv::Reader::from_path(path).map_err(|error| failed(&error))?;
    if reader.headers().map_err(|error| failed(&error))? != HEADER.as_slice() {
        return Err(format!("{}: the first line is not `{}`", path.display(), HEADER.join(",")).into());
    }
    let mut payments = Payments::new();
    for record in reader.records() {
        let record = record.map_err(|error| failed(&error))?;
        let mut fields = record.iter().map(ToOwned::to_owned);
        let reference = fields.next().unwrap_or_default();
        if payments.insert(reference.clone(), fields.collect()).is_some() {
            return Err(format!("{}: {reference} is there twice", path.display()).into());
        }
    }
    Ok(payments)
}

fn compare(exported: &Payments, there: &Payments) -> Vec<String> {
    let mut differences = Vec::new();
    for (reference, fields) in there {
        match exported.get(reference) {
            None => differences.push(format!("{reference} is not in the export: {}", fields.join(", "))),
            Some(found) if found != fields => differences.push(format!(
                "{reference} differs: {} in the export, {} in the database",
                found.join(", "),
                fields.join(", ")
            )),
            Some(_) => {}
        }
    }
    let strangers = exported.keys().filter(|reference| !there.contains_key(*reference));
    differences.extend(strangers.map(|reference| format!("{reference} is not in the database")));
    differences
}

/// Counts rows, cents and corrections.
fn totals(payments: &Payments) -> (usize, i64, usize) {
    let cents = payments.values().filter_map(|fields| fields.get(1)?.parse::<i64>().ok()).sum();
    let corrections = payments.values().filter(|fields| fields.get(3).is_some_and(|of| !of.is_empty()));
    (payments.len(), cents, corrections.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payments(rows: &[(&str, &str)]) -> Payments {
        let fields = |cents: &str| ["1", cents, "card", "", "2026-11-21"].map(ToOwned::to_owned).to_vec();
        rows.iter().map(|(reference, cents)| ((*reference).to_owned(), fields(cents))).collect()
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let there = payments(&[("a", "5"), ("b", "6"), ("c", "7")]);
        assert_eq!(compare(&there, &there), [""; 0]);
        let differences = compare(&payments(&[("a", "5"), ("b", "60"), ("d", "7")]), &there);
        assert_eq!(differences.len(), 3, "{differences:?}");
        for text in ["b differs: 1, 60, card", "c is not in the export", "d is not in the database"] {
            assert!(
                differences.iter().any(|difference| difference.contains(text)),
                "{text}: {differences:?}"
            );
        }
        assert_eq!(totals(&there), (3, 18, 0));
    }
}
