//! What a look at many objects finds, as one check.

use std::time::Duration;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use tokio_postgres::Row;

use super::super::connect::{Client, PgError};

/// A database that is looked at.
pub(super) struct Database<'a> {
    pub(super) name: &'a str,
    pub(super) client: &'a Client,
    pub(super) server: &'a Server,
    /// For each statement.
    pub(super) limit: Duration,
    /// Objects whose findings are known and no failure, as they are named in findings.
    pub(super) accept: &'a [String],
}

/// What is known of the server before its data is looked at.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) in_recovery: bool,
    pub(super) major: u32,
    pub(super) version: String,
    pub(super) data_checksums: bool,
}

/// What was found wrong, and how much was looked at.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) looked_at: usize,
    /// Objects, and what is wrong with each.
    pub(super) wrong: Vec<(String, String)>,
    /// What is worth knowing and not wrong.
    pub(super) notes: Vec<String>,
}

impl Findings {
    /// Makes a check of them.
    pub(super) fn check(self, name: String, objects: &str, accept: &[String]) -> Check {
        let (accepted, wrong): (Vec<_>, Vec<_>) =
            self.wrong.into_iter().partition(|(name, _)| accept.contains(name));
        let mut actual = match wrong.as_slice() {
            [] => format!("all of {}", self.looked_at),
            wrong => brief(wrong),
        };
        if !accepted.is_empty() {
            actual.push_str(&format!(" (accepted: {})", brief(&accepted)));
        }
        if !self.notes.is_empty() {
            actual.push_str(&format!("; {}", self.notes.join("; ")));
        }
        Check { name, expected: format!("all {objects}"), actual, passed: wrong.is_empty() }
    }
}

impl Database<'_> {
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<Row>, StepError> {
        let rows = self.client.query(sql, &[], self.limit).await;
        rows.map_err(|error| self.failed(error))
    }

    pub(super) fn failed(&self, error: PgError) -> StepError {
        let mut error = error.into_step();
        error.message = format!("in database `{}`: {}", self.name, error.message);
        error
    }

    pub(super) fn report(&self, what: &str, objects: &str, findings: Findings) -> Check {
        findings.check(format!("{}: {what}", self.name), objects, self.accept)
    }
}

/// Names the first few.
fn brief(wrong: &[(String, String)]) -> String {
    const SHOWN: usize = 10;
    let mut shown: Vec<String> =
        wrong.iter().take(SHOWN).map(|(name, problem)| format!("{name} {problem}")).collect();
    if wrong.len() > SHOWN {
        shown.push(format!("and {} more", wrong.len() - SHOWN));
    }
    shown.join("; ")
}
