//! What a restored system holds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio_postgres::{Client, Row};

use super::judge::Wanted;
use crate::cache::Cache;
use crate::database;
use crate::error::{AnyError, database_message};

/// The rows that matter. Those of the traffic are by reference.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Count and sum of the payments that were there before any traffic.
    pub(super) seeds: (i64, i64),
    /// What a row says, in words that an entry of the ledger can say too.
    pub(super) payments: BTreeMap<String, String>,
    pub(super) decisions: BTreeMap<String, String>,
    pub(super) media: BTreeMap<String, String>,
    pub(super) beats: BTreeSet<Timestamp>,
}

/// Reads all rows of the traffic, in one transaction.
pub(super) async fn database(url: &str) -> Result<Rows, AnyError> {
    let mut client = connect(url).await?;
    Ok(read_rows(&mut client).await.map_err(|error| database_message(&error))?)
}

async fn read_rows(client: &mut Client) -> Result<Rows, tokio_postgres::Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let seeds = "
        SELECT count(*), coalesce(sum(amount_cents), 0)::bigint FROM payments WHERE reference LIKE 'seed-%'";
    let payments = "
        SELECT reference, 'id ' || id || ', member ' || member_id || ', ' || amount_cents || ' cents'
        FROM payments WHERE reference LIKE 'traffic-%'";
    let decisions = "
        SELECT reference, 'id ' || id || ', member ' || member_id || ', ' || new_status
        FROM member_audit WHERE reference LIKE 'traffic-%'";
    let media = "
        SELECT reference, 'id ' || id || ', ' || bytes || ' bytes, ' || sha256
        FROM media WHERE reference LIKE 'traffic-%'";
    let seeds = transaction.query_one(seeds, &[]).await?;
    Ok(Rows {
        seeds: (seeds.get(0), seeds.get(1)),
        payments: by_reference(&transaction.query(payments, &[]).await?),
        decisions: by_reference(&transaction.query(decisions, &[]).await?),
        media: by_reference(&transaction.query(media, &[]).await?),
        beats: transaction
            .query("SELECT at FROM heartbeat", &[])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect(),
    })
}

fn by_reference(rows: &[Row]) -> BTreeMap<String, String> {
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Returns path and SHA-256 of the files that were there before any traffic.
pub(super) async fn seed_files(url: &str) -> Result<Vec<(String, String)>, AnyError> {
    let question = "SELECT path, sha256 FROM media WHERE reference LIKE 'seed-%'";
    let rows = connect(url).await?.query(question, &[]).await;
    let rows = rows.map_err(|error| database_message(&error))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn connect(url: &str) -> Result<Client, AnyError> {
    let opened = database::connect(&database::parse(url)?).await;
    Ok(opened.map_err(|error| format!("cannot reach the restored database: {error}"))?)
}

/// Reads the keys that must be there: for a counter its value, for a session 1.
pub(super) async fn keys(url: &str, wanted: &Wanted) -> Result<BTreeMap<String, i64>, AnyError> {
    let cache = Cache::new(url)?;
    let lost = |error: redis::RedisError| format!("cannot read from the restored Redis: {error}");
    let mut found = BTreeMap::new();
    for key in wanted.counters.keys() {
        if let Some(value) = cache.counter(key).await.map_err(lost)? {
            found.insert(key.clone(), value);
        }
    }
    for key in &wanted.sessions {
        if cache.exists(key).await.map_err(lost)? {
            found.insert(key.clone(), 1);
        }
    }
    Ok(found)
}
