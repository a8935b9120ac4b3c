//! What comes of a change: its results and its digest, the reverse script, the record of one that was made before.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::plan::hex;
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Family;
use super::params::{Params, judge};
use crate::sql::done;

/// How many rows of a difference are outputs; all are in the record.
const SHOWN: usize = 100;

/// A change that was made, as its record in the server says.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) by: String,
    pub(crate) result: Value,
    pub(crate) undone: bool,
}

impl Made {
    /// Says whether this step of this run has made it, and nobody has taken it back.
    pub(crate) fn is_ours(&self, ctx: &StepContext) -> bool {
        !self.undone && self.by == ctx.info.idempotency_key()
    }
}

/// What statements have done, for the results.
#[derive(Clone, Debug)]
pub(crate) struct Difference<I> {
    pub(crate) rows: usize,
    /// See [`summary`].
    pub(crate) tables: Value,
    pub(crate) digest: String,
    /// The rows for people; no more than needed are taken.
    pub(crate) shown: I,
}

impl Family {
    /// Returns the results of a change that was made before under this key.
    pub(crate) fn made_before(&self, ctx: &StepContext, key: &str, made: Made) -> Result<Done, StepError> {
        let code = self.codes.taken_back;
        if made.undone {
            let message = format!("the change `{key}` was made by {} and taken back", made.by);
            return Err(StepError::permanent(code, message)
                .help("to make it again, give it another `idempotency_key`"));
        }
        let mut done: Done = serde_json::from_value(made.result).map_err(|error| {
            StepError::permanent(code, format!("the record of the change `{key}` cannot be read"))
                .caused_by(&error)
        })?;
        if made.by != ctx.info.idempotency_key() {
            done.warnings.push(format!("the change `{key}` was made before, by {}", made.by));
        }
        Ok(done)
    }

    /// Returns the checks of all invariants, or the failure of those that would not hold.
    pub(crate) fn held(
        &self,
        params: &Params,
        before: &[Vec<Value>],
        after: Vec<Vec<Value>>,
    ) -> Result<Vec<Check>, StepError> {
        let checks = judge(&params.invariants, before, after);
        let failed: Vec<_> =
            checks.iter().filter(|check| !check.passed).map(|check| check.name.clone()).collect();
        if failed.is_empty() {
            return Ok(checks);
        }
        let message = format!("what must hold afterwards would not: {}", failed.join("; "));
        Err(StepError::permanent(self.codes.invariant, message)
            .help("nothing was changed; the report shows what was found")
            .checks(checks))
    }

    /// The failure of a change of more rows than are allowed.
    pub(crate) fn too_many(&self, params: &Params) -> StepError {
        let message = format!("more than {} rows would be changed ({})", params.most(), params.limit());
        StepError::permanent(self.codes.too_many, message)
            .help("nothing was changed; look at them with `dry_run: true` and a higher `max_rows`")
    }

    /// Returns the results, or the failure if another difference was approved.
    pub(crate) fn results(
        &self,
        params: &Params,
        difference: Difference<impl Iterator<Item = Value>>,
        checks: Vec<Check>,
    ) -> Result<Done, StepError> {
        let Difference { rows, tables, digest, shown } = difference;
        if let Some(approved) = params.approved.as_ref().filter(|approved| **approved != digest) {
            let message =
                format!("the difference is not the one that was approved ({approved}), but {digest}");
            return Err(StepError::permanent(self.codes.not_approved, message)
                .help("nothing was changed; the data has changed since the dry run: look again, and name columns that differ each time in `ignore`"));
        }
        let shown: Vec<Value> = shown.take(SHOWN).collect();
        let mut results = done(json!({
            "rows": rows, "tables": tables, "difference": shown, "digest": digest,
            "applied": !params.dry_run, "reverse": "",
        }));
        results.checks = checks;
        Ok(results)
    }

    /// Writes the reverse script, which exists before the change does; returns its path.
    pub(crate) fn write_reverse(&self, ctx: &StepContext, script: &str) -> Result<String, StepError> {
        let path = ctx.work_dir()?.join("reverse.sql");
        let open =
            || std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = open().and_then(|mut file| {
            file.write_all(script.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| {
            StepError::transient(self.codes.unwritten, format!("{} cannot be written", path.display()))
                .help("nothing was changed; make room in the state directory")
                .caused_by(&error)
        })?;
        Ok(path.display().to_string())
    }

    /// The failure of a change that stays as it is.
    pub(crate) fn kept(&self, why: &str) -> StepError {
        StepError::permanent(self.codes.no_way_back, format!("the change cannot be taken back: {why}"))
            .help("its rows before and after stand in lifeboat.changed_rows; decide by hand")
    }
}

/// Returns a digest of a difference, by which it is recognised after it was approved: of what lasts of each row, in any order.
pub(crate) fn digest(mut lines: Vec<String>) -> String {
    lines.sort();
    hex(&Sha256::digest(lines.join("\n").as_bytes()))
}

/// Counts what happened by table: rows come as their table and `insert`, `update` or `delete`.
pub(crate) fn summary<'a>(rows: impl Iterator<Item = (String, &'a str)>) -> Value {
    let mut tables = BTreeMap::<String, [u64; 3]>::new();
    for (table, operation) in rows {
        let counts = tables.entry(table).or_default();
        counts[["insert", "update"].iter().position(|name| *name == operation).unwrap_or(2)] += 1;
    }
    let one = |(table, [inserted, updated, deleted]): (String, [u64; 3])| json!({ "table": table, "inserted": inserted, "updated": updated, "deleted": deleted });
    tables.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approved_difference_is_recognised_in_any_order_and_another_is_not() {
        let of = |lines: &[&str]| digest(lines.iter().map(ToString::to_string).collect());
        assert_eq!(of(&["t insert 5", "t insert 6"]), of(&["t insert 6", "t insert 5"]));
        assert_ne!(of(&["t insert 5"]), of(&["t insert 6"]));
        assert_ne!(of(&["t insert 5"]), of(&["t delete 5"]));
    }

    #[test]
    fn rows_are_counted_by_table_and_by_what_happened() {
        let rows = [("b", "delete"), ("a", "update"), ("a", "insert"), ("a", "update")];
        let counts = summary(rows.iter().map(|(table, operation)| ((*table).to_owned(), *operation)));
        let expected = json!([
            { "table": "a", "inserted": 1, "updated": 2, "deleted": 0 },
            { "table": "b", "inserted": 0, "updated": 0, "deleted": 1 },
        ]);
        assert_eq!(counts, expected);
    }
}
