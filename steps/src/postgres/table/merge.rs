//! The merge of recovered rows into a live table, within one transaction.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::codes;
use super::super::connect::{Client, PgError};
use super::super::database::{PATIENT, quoted, text};
use super::orphans::{self, ForeignKey};
use super::proof;
use super::shape::{Fit, Name, list};

/// Where recovered rows are put before they are merged.
pub(super) const STAGE: &str = "pg_temp.lifeboat_rows";

/// Sequences that a table owns or takes default values from, each with a statement that gives the one which moves it beyond
/// the column, or null if it stands there already.
const SEQUENCES: &str = "
    with used as (
      select d.objid as sequence, d.refobjid as relation, d.refobjsubid::int as number from pg_depend d
      where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
      union
      select d.refobjid, f.adrelid, f.adnum::int from pg_attrdef f join pg_depend d
        on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass)
    select s.oid::regclass::text, has_sequence_privilege(s.oid, 'UPDATE') and has_sequence_privilege(s.oid, 'SELECT'),
      format('select (select format(''select setval(%%L, %%s)'', %L, top.value) from %s s, '
             '(select %s(%I)::bigint as value from %s) top where top.value %s s.last_value + case when s.is_called then %s else 0 end)',
        s.oid::regclass, s.oid::regclass, case when q.seqincrement > 0 then 'max' else 'min' end, a.attname, used.relation::regclass,
        case when q.seqincrement > 0 then '>=' else '<=' end, sign(q.seqincrement))
    from used join pg_class s on s.oid = used.sequence join pg_sequence q on q.seqrelid = s.oid
    join pg_attribute a on a.attrelid = used.relation and a.attnum = used.number
    where s.relkind = 'S' and used.relation = $1
      and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
    order by 1";

/// What becomes of rows that are in both tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    InsertMissing,
    Replace,
    NewTable,
}

/// What becomes of recovered rows that refer to rows which are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Orphans {
    Refuse,
    Skip,
}

/// Whether triggers of the user's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Triggers {
    Off,
    On,
}

/// One merge.
pub(super) struct Merge<'a> {
    pub(super) live: &'a Client,
    pub(super) table: &'a Name,
    pub(super) oid: u32,
    pub(super) fit: &'a Fit,
    pub(super) mode: Mode,
    pub(super) only: Option<&'a str>,
    /// The schema of the before-image.
    pub(super) image: &'a str,
}

/// How the two tables compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) recovered: i64,
    pub(super) missing: i64,
    pub(super) different: i64,
    pub(super) same: i64,
    pub(super) only_live: i64,
    pub(super) skipped: i64,
}

impl Counts {
    /// Returns them as outputs. `written` is false for a dry run.
    pub(super) fn outputs(&self, mode: Mode, written: bool) -> Value {
        let replaced = if mode == Mode::Replace { self.different } else { 0 };
        json!({
            "recovered": self.recovered, "missing": self.missing, "different": self.different, "same": self.same,
            "only_live": self.only_live, "skipped": self.skipped,
            "inserted": if written { self.missing } else { 0 }, "replaced": if written { replaced } else { 0 },
        })
    }
}

impl Merge<'_> {
    async fn count(&self, sql: &str) -> Result<i64, StepError> {
        Ok(self.live.query_one(sql, &[], PATIENT).await?.get(0))
    }

    async fn run(&self, sql: &str) -> Result<(), StepError> {
        self.live.batch(sql, PATIENT).await.map_err(refused)
    }

    /// Makes the table that recovered rows are put in first; it goes away with the transaction.
    pub(super) async fn make_stage(&self) -> Result<(), StepError> {
        let columns = self.fit.list("");
        let live = self.table.sql();
        self.run(&format!(
            "create temporary table lifeboat_rows on commit drop as select {columns} from {live} with no data"
        ))
        .await
    }

    /// Makes the recovered rows findable by key, which also proves that no key is there twice.
    pub(super) async fn index_stage(&self) -> Result<(), StepError> {
        let key = list(self.fit.key.iter().map(String::as_str), "");
        self.run(&format!("create unique index on {STAGE} ({key}); analyze {STAGE}")).await
    }

    /// Keeps everybody else from writing.
    pub(super) async fn lock(&self) -> Result<(), StepError> {
        self.run(&format!("lock table {} in share row exclusive mode", self.table.sql())).await
    }

    /// Compares the recovered rows with the live ones.
    pub(super) async fn compare(&self) -> Result<Counts, StepError> {
        let (live, same_key) = (self.table.sql(), self.fit.same_key("t", "s"));
        let (s, t) = (self.fit.row("s"), self.fit.row("t"));
        let only = self.only.map_or("true", |only| only);
        let recovered = self.count(&format!("select count(*) from {STAGE}")).await?;
        let missing = format!("select count(*) from {STAGE} s where {}", self.is_missing());
        let missing = self.count(&missing).await?;
        let different =
            format!("select count(*) from {STAGE} s join {live} t on {same_key} where {s} <> {t}");
        let different = self.count(&different).await?;
        let only_live = self
            .count(&format!(
                "select count(*) from (select * from {live} where ({only}\n)) t \
                 where not exists (select from {STAGE} s where {same_key})"
            ))
            .await?;
        let same = recovered - missing - different;
        Ok(Counts { recovered, missing, different, same, only_live, skipped: 0 })
    }

    fn is_missing(&self) -> String {
        format!("not exists (select from {} t where {})", self.table.sql(), self.fit.same_key("t", "s"))
    }

    /// Finds recovered rows that refer to nothing, and leaves them out or returns how many each key has.
    pub(super) async fn orphans(
        &self,
        keys: &[ForeignKey],
        what: Orphans,
    ) -> Result<(i64, Vec<String>), StepError> {
        let mut skipped = 0;
        loop {
            let mut found = Vec::new();
            for key in keys.iter().filter(|key| key.outbound) {
                let own = [key.parent.as_str(), STAGE];
                let parents = if key.own { &own[..] } else { &own[..1] };
                let condition = key.is_orphan(parents);
                let count = self.count(&format!("select count(*) from {STAGE} c where {condition}")).await?;
                if count == 0 {
                    continue;
                }
                found.push(format!(
                    "{count} rows refer by `{}` to rows of {} that are gone",
                    key.name, key.parent
                ));
                if what == Orphans::Skip {
                    self.run(&format!("delete from {STAGE} c where {condition}")).await?;
                    skipped += count;
                }
            }
            // A row that is left out may be what another recovered row refers to.
            if what == Orphans::Refuse || found.is_empty() {
                return Ok((skipped, found));
            }
        }
    }

    /// Keeps what will be replaced and what will be written, for undo and for people.
    pub(super) async fn keep_image(&self) -> Result<(), StepError> {
        let (image, live) = (quoted(self.image), self.table.sql());
        let (same_key, missing) = (self.fit.same_key("t", "s"), self.is_missing());
        let different = format!(
            "exists (select from {live} t where {same_key} and {} <> {})",
            self.fit.row("t"),
            self.fit.row("s")
        );
        let replaced = if self.mode == Mode::Replace { different.as_str() } else { "false" };
        self.run(&format!(
            "create schema {image}; \
             create table {image}.before as select {} from {live} t join {STAGE} s on {same_key} where {replaced}; \
             create table {image}.written as select {} from {STAGE} s where {missing} or {replaced}",
            self.fit.list("t."),
            self.fit.list("s."),
        ))
        .await
    }

    /// Writes.
    pub(super) async fn write(&self, triggers: Triggers) -> Result<(), StepError> {
        let (off, on) = match triggers {
            Triggers::Off => switches(self.live, self.oid).await?,
            Triggers::On => (String::new(), String::new()),
        };
        self.run(&off).await?;
        let (live, image) = (self.table.sql(), quoted(self.image));
        if self.mode == Mode::Replace && !self.fit.values.is_empty() {
            let set = self.fit.values.iter().map(|name| format!("{0} = s.{0}", quoted(name)));
            let set: Vec<_> = set.collect();
            self.run(&format!(
                "update {live} t set {} from {image}.written s where {}",
                set.join(", "),
                self.fit.same_key("t", "s")
            ))
            .await?;
        }
        self.run(&format!(
            "insert into {live} ({}) overriding system value select {} from {image}.written s where {}",
            self.fit.list(""),
            self.fit.list("s."),
            self.is_missing()
        ))
        .await?;
        self.run(&on).await?;
        self.run("set constraints all immediate").await
    }

    /// Finds the sequences that would give out values which the table has now, and returns the statements that move them
    /// forward. Changes nothing: a sequence is no part of a transaction, so that no rollback takes it back.
    pub(super) async fn late_sequences(&self) -> Result<Vec<String>, StepError> {
        let mut late = Vec::new();
        for row in self.live.query(SEQUENCES, &[&self.oid], PATIENT).await? {
            let (name, allowed, is_late): (String, bool, String) = (row.get(0), row.get(1), row.get(2));
            if !allowed {
                let message = format!("the role may not read and set the sequence {name} of {}", self.table);
                return Err(StepError::permanent(codes::LB1810, message).help(format!(
                    "grant select, update on sequence {name}, or log in as its owner; nothing was written"
                )));
            }
            let row = self.live.query_one(&is_late, &[], PATIENT).await?;
            late.extend(row.get::<_, Option<String>>(0));
        }
        Ok(late)
    }

    /// Moves sequences. The last thing that is done before the commit, and never in a dry run.
    pub(super) async fn advance(&self, sequences: &[String]) -> Result<(), StepError> {
        for statement in sequences {
            self.run(statement).await?;
        }
        Ok(())
    }

    /// Compares what stands in the live table now with what was to be written.
    pub(super) async fn prove(&self) -> Result<Check, StepError> {
        let image = quoted(self.image);
        let wanted = format!("select {} from {image}.written w", self.fit.row("w"));
        let found = format!(
            "select {} from {} t join {image}.written w on {}",
            self.fit.row("t"),
            self.table.sql(),
            self.fit.same_key("t", "w")
        );
        let wanted = proof::digest(self.live, &wanted).await?;
        let found = proof::digest(self.live, &found).await?;
        Ok(proof::check("the rows written are the rows recovered", &wanted, &found))
    }

    /// Leaves the results with the before-image, in the same transaction: who finds them knows that it was committed.
    pub(super) async fn sign(&self, note: &Value) -> Result<(), StepError> {
        let sql = format!("comment on schema {} is {}", quoted(self.image), text(&note.to_string()));
        self.run(&sql).await
    }
}

/// Compares orphans before and after: a merge may heal, never harm.
pub(super) async fn compare_orphans(
    client: &Client,
    keys: &[ForeignKey],
    before: &[i64],
) -> Result<Vec<Check>, StepError> {
    let after = orphans::count_all(client, keys).await?;
    let one = |((key, before), after): ((&ForeignKey, &i64), &i64)| Check {
        name: format!("foreign key `{}` of {} holds", key.name, key.child),
        expected: if *before == 0 {
            "no orphans".into()
        } else {
            format!("at most {before} orphans, as before")
        },
        actual: format!("{after} orphans"),
        passed: after <= before,
    };
    Ok(keys.iter().zip(before).zip(&after).map(one).collect())
}

/// Returns statements that switch triggers of the user's off, and on again as they were. Those of foreign keys stay on.
async fn switches(client: &Client, oid: u32) -> Result<(String, String), StepError> {
    let sql = "
        select t.tgrelid::regclass::text, t.tgname::text, t.tgenabled::text from pg_trigger t
        where t.tgrelid in (select $1::oid union select relid from pg_partition_tree($1::oid::regclass))
          and not t.tgisinternal and t.tgenabled <> 'D'
        order by (select max(level) from pg_partition_tree($1::oid::regclass) where relid = t.tgrelid) nulls first";
    let (mut off, mut on) = (String::new(), String::new());
    for row in client.query(sql, &[&oid], PATIENT).await? {
        let (table, trigger, enabled): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let how = match enabled.as_str() {
            "A" => "enable always",
            "R" => "enable replica",
            _ => "enable",
        };
        let trigger = quoted(&trigger);
        off.push_str(&format!("alter table {table} disable trigger {trigger};"));
        on.push_str(&format!("alter table {table} {how} trigger {trigger};"));
    }
    Ok((off, on))
}

/// What the server refuses within the transaction changes nothing.
pub(super) fn refused(error: PgError) -> StepError {
    const LOCKED: &str = "55P03";
    match error {
        PgError::Database(db) if db.sqlstate == LOCKED => {
            StepError::transient(codes::LB1815, format!("the table could not be locked in time: {db}"))
                .help("somebody holds a lock on it: select * from pg_stat_activity where wait_event_type = 'Lock' or state like 'idle in%'; nothing was written")
        }
        PgError::Database(db) if db.sqlstate.starts_with("23") => {
            StepError::permanent(codes::LB1811, format!("the recovered rows do not fit among the live ones: {db}"))
                .help("nothing was written; look at the row that is named, and choose rows with `only`, or another `mode`")
        }
        other => other.into_step(),
    }
}
