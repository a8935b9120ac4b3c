//! Checks of one database through its catalogue. All of them work on a server that recovers.

use std::time::Duration;

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use tokio_postgres::Row;

use super::super::connect::Client;

/// What is checked in one database.
pub(super) struct Database<'a> {
    pub(super) name: &'a str,
    pub(super) client: &'a Client,
    /// For each statement.
    pub(super) limit: Duration,
    /// Objects whose findings are known and no failure, as they are named in findings.
    pub(super) accept: &'a [String],
}

/// What was found wrong, and how much was looked at.
struct Findings {
    looked_at: usize,
    wrong: Vec<(String, String)>,
}

const INDEXES: &str = "
    select format('%s', i.indexrelid::regclass), i.indisvalid and i.indisready and i.indislive
    from pg_index i join pg_class c on c.oid = i.indexrelid
    where c.relnamespace <> 'pg_toast'::regnamespace and c.relpersistence <> 't'
    order by 1";

const CONSTRAINTS: &str = "
    select format('%s.%I', conrelid::regclass, conname), convalidated
    from pg_constraint where contype in ('f', 'c') and conrelid <> 0 order by 1";

/// One anti-join for each foreign key, with all its columns; rows with a null in one of them are not bound by it
/// (MATCH SIMPLE), except under MATCH FULL, where only rows that are null throughout are free.
const FOREIGN_KEYS: &str = "
    select format('%s.%I', con.conrelid::regclass, con.conname),
      format('select count(*) from %s c where (%s) and not exists (select 1 from %s p where %s)',
        con.conrelid::regclass,
        (select string_agg(format('c.%I is not null', a.attname),
                           case con.confmatchtype when 'f' then ' or ' else ' and ' end)
           from unnest(con.conkey) k(n)
           join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.n),
        con.confrelid::regclass,
        (select string_agg(format('p.%I = c.%I', f.attname, a.attname), ' and ')
           from unnest(con.conkey, con.confkey) k(n, m)
           join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.n
           join pg_attribute f on f.attrelid = con.confrelid and f.attnum = k.m))
    from pg_constraint con
    where con.contype = 'f' and con.conparentid = 0 and not coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)
    order by 1";

/// A sequence that belongs to a column, and a statement that says whether its next value is taken already. After a
/// recovery a sequence may stand up to 32 values further than at the source, never less far.
const SEQUENCES: &str = "
    select format('%s', s.oid::regclass),
      format('select s.last_value::text, top.value::text, coalesce(top.value '
             || case when q.seqincrement > 0 then '>=' else '<=' end
             || ' s.last_value + case when s.is_called then %s else 0 end, false) '
             || 'from %s s, (select ' || case when q.seqincrement > 0 then 'max' else 'min' end
             || '(%I)::bigint as value from %s) top',
        q.seqincrement, s.oid::regclass, a.attname, d.refobjid::regclass)
    from pg_class s
    join pg_sequence q on q.seqrelid = s.oid
    join pg_depend d on d.objid = s.oid and d.classid = 'pg_class'::regclass
      and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
    join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where s.relkind = 'S' and s.relpersistence = 'p' and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
    order by 1";

/// Makes all checks of a database.
pub(super) async fn check(database: &Database<'_>) -> Result<Vec<Check>, StepError> {
    Ok(vec![
        database.report("indexes are usable", "indexes", database.flags(INDEXES, "is not valid").await?),
        database.report(
            "constraints are validated",
            "constraints",
            database.flags(CONSTRAINTS, "was never validated").await?,
        ),
        database.report("foreign keys hold", "foreign keys", database.foreign_keys().await?),
        database.report("sequences are ahead of their columns", "sequences", database.sequences().await?),
    ])
}

impl Database<'_> {
    async fn rows(&self, sql: &str) -> Result<Vec<Row>, StepError> {
        let rows = self.client.query(sql, &[], self.limit).await;
        rows.map_err(|error| {
            let mut error = error.into_step();
            error.message = format!("in database `{}`: {}", self.name, error.message);
            error
        })
    }

    /// A statement that gives objects and whether they are as they should be.
    async fn flags(&self, sql: &str, problem: &str) -> Result<Findings, StepError> {
        let rows = self.rows(sql).await?;
        let wrong = rows
            .iter()
            .filter(|row| !row.get::<_, bool>(1))
            .map(|row| (row.get(0), problem.to_owned()))
            .collect();
        Ok(Findings { looked_at: rows.len(), wrong })
    }

    async fn foreign_keys(&self) -> Result<Findings, StepError> {
        let rows = self.rows(FOREIGN_KEYS).await?;
        let mut wrong = Vec::new();
        for row in &rows {
            let (name, sql): (String, String) = (row.get(0), row.get(1));
            let orphans: i64 = self.rows(&sql).await?.first().map_or(0, |row| row.get(0));
            if orphans > 0 {
                let rows = if orphans == 1 { "row refers" } else { "rows refer" };
                wrong.push((name, format!("{orphans} {rows} to nothing")));
            }
        }
        Ok(Findings { looked_at: rows.len(), wrong })
    }

    async fn sequences(&self) -> Result<Findings, StepError> {
        let rows = self.rows(SEQUENCES).await?;
        let mut wrong = Vec::new();
        for row in &rows {
            let (name, sql): (String, String) = (row.get(0), row.get(1));
            let found = self.rows(&sql).await?;
            if let Some(found) = found.first().filter(|found| found.get(2)) {
                let (last, top): (String, Option<String>) = (found.get(0), found.get(1));
                wrong.push((name, format!("stands at {last}, its column is at {}", top.unwrap_or_default())));
            }
        }
        Ok(Findings { looked_at: rows.len(), wrong })
    }

    fn report(&self, what: &str, objects: &str, findings: Findings) -> Check {
        let (accepted, wrong): (Vec<_>, Vec<_>) =
            findings.wrong.into_iter().partition(|(name, _)| self.accept.contains(name));
        let mut actual = match wrong.as_slice() {
            [] => format!("all of {}", findings.looked_at),
            wrong => brief(wrong),
        };
        if !accepted.is_empty() {
            actual.push_str(&format!(" (accepted: {})", brief(&accepted)));
        }
        Check {
            name: format!("{}: {what}", self.name),
            expected: format!("all {objects}"),
            actual,
            passed: wrong.is_empty(),
        }
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
