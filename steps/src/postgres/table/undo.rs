//! Takes recovered rows back out of a live table, if nobody has changed them since.

use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};

use super::super::codes;
use super::super::connect::Client;
use super::super::database::{PATIENT, quoted, text};
use super::merge::refused;
use super::orphans;
use super::shape::{Fit, Name};

/// The live table and its before-image.
pub(super) struct Image<'a> {
    pub(super) live: &'a Client,
    pub(super) table: &'a Name,
    pub(super) oid: u32,
    pub(super) fit: &'a Fit,
    pub(super) schema: &'a str,
}

impl Image<'_> {
    /// Gives replaced rows their earlier values, and deletes inserted ones, in one transaction that is to be committed
    /// by the caller.
    pub(super) async fn take_back(&self) -> Result<Done, StepError> {
        let (live, image) = (self.table.sql(), quoted(self.schema));
        self.run(&format!("lock table {live} in share row exclusive mode")).await?;
        self.refuse_changed().await?;
        let inserted =
            format!("not exists (select from {image}.before b where {})", self.fit.same_key("b", "w"));
        self.refuse_referred(&inserted).await?;
        let set = self.fit.values.iter().map(|name| format!("{0} = b.{0}", quoted(name)));
        let set: Vec<_> = set.collect();
        if !set.is_empty() {
            let same = self.fit.same_key("t", "b");
            self.run(&format!("update {live} t set {} from {image}.before b where {same}", set.join(", ")))
                .await?;
        }
        let same = self.fit.same_key("t", "w");
        self.run(&format!("delete from {live} t using {image}.written w where {same} and {inserted}"))
            .await?;
        let mut done = Done::default();
        let count = |table: &str| format!("select count(*) from {image}.{table}");
        let replaced: i64 = self.live.query_one(&count("before"), &[], PATIENT).await?.get(0);
        let written: i64 = self.live.query_one(&count("written"), &[], PATIENT).await?.get(0);
        done.facts.insert("rows deleted again".into(), (written - replaced).to_string());
        done.facts.insert("rows as before again".into(), replaced.to_string());
        let note = text(&json!({ "undone": true }).to_string());
        self.run(&format!("comment on schema {image} is {note}")).await?;
        Ok(done)
    }

    async fn run(&self, sql: &str) -> Result<(), StepError> {
        self.live.batch(sql, PATIENT).await.map_err(refused)
    }

    /// What somebody has changed since is theirs.
    async fn refuse_changed(&self) -> Result<(), StepError> {
        let sql = format!(
            "select count(*) from {}.written w left join {} t on {} where {} is distinct from {}",
            quoted(self.schema),
            self.table.sql(),
            self.fit.same_key("t", "w"),
            self.fit.row("t"),
            self.fit.row("w")
        );
        let changed: i64 = self.live.query_one(&sql, &[], PATIENT).await?.get(0);
        if changed == 0 {
            return Ok(());
        }
        Err(self.kept(format!(
            "{changed} of the recovered rows of {} have been changed or deleted since",
            self.table
        )))
    }

    /// Deleting a row may take others with it (`on delete cascade`).
    async fn refuse_referred(&self, inserted: &str) -> Result<(), StepError> {
        for key in orphans::of(self.live, self.oid).await?.iter().filter(|key| !key.outbound || key.own) {
            let image = quoted(self.schema);
            let own = match key.own {
                true => format!(
                    "and not exists (select from {image}.written o where {})",
                    self.fit.same_key("o", "c")
                ),
                false => String::new(),
            };
            let sql = format!(
                "select count(*) from {} c where exists (select from {} p join {image}.written w on {} where {} and {inserted}) {own}",
                key.child,
                self.table.sql(),
                self.fit.same_key("p", "w"),
                key.refers()
            );
            let referring: i64 = self.live.query_one(&sql, &[], PATIENT).await?.get(0);
            if referring > 0 {
                return Err(self.kept(format!(
                    "{referring} rows of {} refer to recovered rows of {}",
                    key.child, self.table
                )));
            }
        }
        Ok(())
    }

    fn kept(&self, problem: String) -> StepError {
        StepError::permanent(codes::LB1814, format!("{problem}; nothing was taken back")).help(format!(
            "the rows as they were written and as they were before stand in {0}.written and {0}.before; decide by hand",
            self.schema
        ))
    }
}

/// Says whether an undo has been committed.
pub(super) fn is_undone(note: &Value) -> bool {
    note.get("undone").and_then(Value::as_bool) == Some(true)
}
