//! Statements as large as they come: a row of a dump, or all that one statement has changed, as a log has it.
//!
//! What a server has taken from an application in one row is twice as long in a dump, in hexadecimal, and a change of many rows
//! is one statement in a log: with the server's usual 16 MiB a restore would end in its middle.

use lifeboat_engine::step::StepError;

use super::connect::{Client, QUICK, number};

/// The largest packet that any server takes.
const MOST: u64 = 1 << 30;
/// The account may not change settings of the server.
const NOT_ALLOWED: u16 = 1227;

/// What a server took before.
#[derive(Debug)]
#[must_use = "the setting is put back by `restore`"]
pub(super) struct Raised {
    before: Option<u64>,
}

impl Raised {
    /// Lets a server take the largest packets from connections that are made from now on, as far as the account may do that.
    pub(super) async fn on(client: &mut Client) -> Result<Self, StepError> {
        let rows = client.rows("select @@global.max_allowed_packet", QUICK).await?;
        let before = rows.first().map_or(MOST, |row| number(row, 0));
        if before >= MOST {
            return Ok(Self { before: None });
        }
        match client.run(&format!("set global max_allowed_packet = {MOST}"), QUICK).await {
            Ok(_) => Ok(Self { before: Some(before) }),
            // Then what is too large is refused by the server, which says so.
            Err(error) if error.number() == Some(NOT_ALLOWED) => Ok(Self { before: None }),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the setting back. A server that is gone has forgotten it.
    pub(super) async fn put_back(self, client: &mut Client) {
        if let Some(before) = self.before {
            client.run(&format!("set global max_allowed_packet = {before}"), QUICK).await.ok();
        }
    }
}
