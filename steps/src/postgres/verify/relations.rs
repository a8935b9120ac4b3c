//! Indexes, constraints, foreign keys and sequences of one database. All of it works on a server that recovers.

use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::StepError;
use tokio_postgres::Row;

use super::super::connect::PgError;
use super::findings::{Database, Findings};

const INDEXES: &str = "
    select format('%s', i.indexrelid::regclass), i.indisvalid and i.indisready and i.indislive
    from pg_index i join pg_class c on c.oid = i.indexrelid
    where c.relnamespace <> 'pg_toast'::regnamespace and c.relpersistence <> 't'
    order by 1";

/// Of tables and of domains. A constraint that is not enforced (since Postgres 18) is none that could hold.
const CONSTRAINTS: &str = "
    select format('%s.%I', case when conrelid <> 0 then conrelid::regclass::text else contypid::regtype::text end, conname),
      convalidated
    from pg_constraint con
    where contype in ('f', 'c', 'n') and (conrelid <> 0 or contypid <> 0)
      and coalesce((to_jsonb(con) ->> 'conenforced')::boolean, true)
    order by 1";

/// One anti-join for each foreign key, with all its columns and the operators by which Postgres itself compares them. Rows
/// with a null in one of them are not bound by it (MATCH SIMPLE), except under MATCH FULL, where only rows that are null
/// throughout are free. A foreign key binds a table without those that inherit from it, and with its partitions.
const FOREIGN_KEYS: &str = "
    select format('%s.%I', con.conrelid::regclass, con.conname),
      format('select count(*) from %s%s c where (%s) and not exists (select 1 from %s%s p where %s)',
        case r.relkind when 'p' then '' else 'only ' end, con.conrelid::regclass,
        (select string_agg(format('c.%I is not null', a.attname),
                           case con.confmatchtype when 'f' then ' or ' else ' and ' end)
           from unnest(con.conkey) k(n)
           join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.n),
        case f.relkind when 'p' then '' else 'only ' end, con.confrelid::regclass,
        (select string_agg(format('p.%I operator(%I.%s) c.%I%s', f.attname, s.nspname, o.oprname, a.attname,
             case when a.attcollation <> f.attcollation then format(' collate %s', f.attcollation::regcollation) end), ' and ')
           from unnest(con.conkey, con.confkey, con.conpfeqop) k(n, m, op)
           join pg_operator o on o.oid = k.op join pg_namespace s on s.oid = o.oprnamespace
           join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.n
           join pg_attribute f on f.attrelid = con.confrelid and f.attnum = k.m))
    from pg_constraint con join pg_class r on r.oid = con.conrelid join pg_class f on f.oid = con.confrelid
    where con.contype = 'f' and con.conparentid = 0
      and not coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)
      and coalesce((to_jsonb(con) ->> 'conenforced')::boolean, true)
      and (r.relpersistence = 'p' or not pg_is_in_recovery())
    order by 1";

/// Foreign keys over periods of time are not looked at.
const TEMPORAL: &str = "
    select count(*) from pg_constraint con where coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)";

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
    join pg_class t on t.oid = d.refobjid
    where s.relkind = 'S' and s.relpersistence = 'p' and not q.seqcycle
      and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
      and (t.relpersistence = 'p' or not pg_is_in_recovery())
    order by 1";

/// Makes all checks of a database.
pub(super) async fn check(database: &Database<'_>) -> Result<Vec<Check>, StepError> {
    // Rows that a policy hides from the role would be missing from every answer: better an error.
    let batch = database.client.batch("set row_security = off", database.limit).await;
    batch.map_err(|error| database.failed(error))?;
    let indexes = database.flags(INDEXES, "is not valid").await?;
    let constraints = database.flags(CONSTRAINTS, "was never validated").await?;
    Ok(vec![
        database.report("indexes are usable", "indexes", indexes),
        database.report("constraints are validated", "constraints", constraints),
        database.report("foreign keys hold", "foreign keys", database.foreign_keys().await?),
        database.report("sequences are ahead of their columns", "sequences", database.sequences().await?),
    ])
}

impl Database<'_> {
    /// A statement that gives objects and whether they are as they should be.
    async fn flags(&self, sql: &str, problem: &str) -> Result<Findings, StepError> {
        let rows = self.rows(sql).await?;
        let wrong = rows
            .iter()
            .filter(|row| !row.get::<_, bool>(1))
            .map(|row| (row.get(0), problem.to_owned()))
            .collect();
        Ok(Findings { looked_at: rows.len(), wrong, notes: Vec::new() })
    }

    async fn foreign_keys(&self) -> Result<Findings, StepError> {
        let rows = self.rows(FOREIGN_KEYS).await?;
        let mut found = Findings { looked_at: rows.len(), ..Findings::default() };
        for row in &rows {
            let (name, sql): (String, String) = (row.get(0), row.get(1));
            let Some(rows) = self.ask(&name, &sql, &mut found).await? else { continue };
            let orphans: i64 = rows.first().map_or(0, |row| row.get(0));
            if orphans > 0 {
                let rows = if orphans == 1 { "row refers" } else { "rows refer" };
                found.wrong.push((name, format!("{orphans} {rows} to nothing")));
            }
        }
        let temporal: i64 = self.rows(TEMPORAL).await?.first().map_or(0, |row| row.get(0));
        if temporal > 0 {
            found.notes.push(format!("not looked at: {temporal} over periods of time"));
        }
        Ok(found)
    }

    async fn sequences(&self) -> Result<Findings, StepError> {
        let rows = self.rows(SEQUENCES).await?;
        let mut found = Findings { looked_at: rows.len(), ..Findings::default() };
        for row in &rows {
            let (name, sql): (String, String) = (row.get(0), row.get(1));
            let Some(values) = self.ask(&name, &sql, &mut found).await? else { continue };
            if let Some(values) = values.first().filter(|values| values.get(2)) {
                let (last, top): (String, Option<String>) = (values.get(0), values.get(1));
                let problem = format!("stands at {last}, its column is at {}", top.unwrap_or_default());
                found.wrong.push((name, problem));
            }
        }
        Ok(found)
    }

    /// Asks about one object. That it cannot be answered, because a page is damaged or a table is closed to the role, is a
    /// finding: the others are still looked at.
    async fn ask(&self, name: &str, sql: &str, found: &mut Findings) -> Result<Option<Vec<Row>>, StepError> {
        match self.client.query(sql, &[], self.limit).await {
            Ok(rows) => Ok(Some(rows)),
            Err(PgError::Database(error)) => {
                found.wrong.push((name.to_owned(), format!("could not be looked at: {error}")));
                Ok(None)
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}
