//! One row every second that says when it was written.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Config};

use super::Teller;
use crate::database;
use crate::error::{AnyError, database_message};
use crate::ledger::{Facts, Ledger, Line, Write};

const PATIENCE: Duration = Duration::from_secs(5);

/// Writes the rows until it is dropped; only a ledger that cannot be written ends it.
pub(super) async fn beat(config: Config, ledger: Arc<Ledger>) -> Result<(), AnyError> {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    let mut told = Teller::default();
    loop {
        ticks.tick().await;
        let connected = match client.take().filter(|client: &Client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => database::connect(&config).await,
        };
        let trouble = match connected {
            Ok(connected) => {
                let trouble = one(&connected, &ledger).await?;
                // A connection on which something went wrong may still be waiting for an answer.
                client = trouble.is_none().then_some(connected);
                trouble
            }
            Err(error) => Some(error),
        };
        told.tell("heartbeat", trouble);
    }
}

async fn one(client: &Client, ledger: &Ledger) -> Result<Option<String>, AnyError> {
    let seq = ledger.begin(|_| Write::Heartbeat)?;
    let insert = client.query_one("INSERT INTO heartbeat DEFAULT VALUES RETURNING id, at", &[]);
    let reason = match timeout(PATIENCE, insert).await {
        Ok(Ok(row)) => {
            let facts = Facts { id: Some(row.get(0)), beat: Some(row.get(1)), ..Facts::default() };
            ledger.write(&Line::Acknowledged { seq, at: Timestamp::now(), facts })?;
            return Ok(None);
        }
        Ok(Err(error)) => database_message(&error),
        Err(_) => format!("no answer after {}s", PATIENCE.as_secs()),
    };
    ledger.write(&Line::Unknown { seq, at: Timestamp::now(), reason: reason.clone() })?;
    Ok(Some(reason))
}
