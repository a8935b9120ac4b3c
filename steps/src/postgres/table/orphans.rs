//! Rows that refer to nothing, in the foreign keys of one table and of those that refer to it.

use lifeboat_engine::step::StepError;

use super::super::connect::Client;
use super::super::database::{PATIENT, quoted};

/// One foreign key.
#[derive(Clone, Debug)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    /// The table with the references, and the one that they refer to.
    pub(super) child: String,
    pub(super) parent: String,
    /// Both ends are the table itself.
    pub(super) own: bool,
    /// The references are in the table.
    pub(super) outbound: bool,
    columns: Vec<String>,
    referenced: Vec<String>,
    full: bool,
}

const KEYS: &str = "
    select con.conname::text, con.conrelid::regclass::text, con.confrelid::regclass::text,
      con.conrelid = con.confrelid, con.conrelid = $1, con.confmatchtype::text = 'f',
      (select array_agg(a.attname::text order by k.place) from unnest(con.conkey) with ordinality k(number, place)
        join pg_attribute a on a.attrelid = con.conrelid and a.attnum = k.number),
      (select array_agg(a.attname::text order by k.place) from unnest(con.confkey) with ordinality k(number, place)
        join pg_attribute a on a.attrelid = con.confrelid and a.attnum = k.number)
    from pg_constraint con
    where con.contype = 'f' and con.conparentid = 0 and (con.conrelid = $1 or con.confrelid = $1)
      and not coalesce((to_jsonb(con) ->> 'conperiod')::boolean, false)
    order by 2, 1";

/// Returns the foreign keys of a table, outbound and inbound.
pub(super) async fn of(client: &Client, oid: u32) -> Result<Vec<ForeignKey>, StepError> {
    let rows = client.query(KEYS, &[&oid], PATIENT).await?;
    let one = |row: &tokio_postgres::Row| ForeignKey {
        name: row.get(0),
        child: row.get(1),
        parent: row.get(2),
        own: row.get(3),
        outbound: row.get(4),
        full: row.get(5),
        columns: row.get(6),
        referenced: row.get(7),
    };
    Ok(rows.iter().map(one).collect())
}

impl ForeignKey {
    /// Returns the condition that a row `c` is bound by the key and refers to no row of `parents`, tables each with
    /// the columns that are referred to.
    pub(super) fn is_orphan(&self, parents: &[&str]) -> String {
        let word = if self.full { " or " } else { " and " };
        let bound: Vec<_> =
            self.columns.iter().map(|name| format!("c.{} is not null", quoted(name))).collect();
        let pairs = self.columns.iter().zip(&self.referenced);
        let equal: Vec<_> =
            pairs.map(|(child, parent)| format!("p.{} = c.{}", quoted(parent), quoted(child))).collect();
        let mut sql = format!("({})", bound.join(word));
        for parent in parents {
            sql.push_str(&format!(" and not exists (select from {parent} p where {})", equal.join(" and ")));
        }
        sql
    }

    /// Returns the condition that a row `c` refers to the row `p`.
    pub(super) fn refers(&self) -> String {
        let pairs = self.columns.iter().zip(&self.referenced);
        let equal = pairs.map(|(child, parent)| format!("p.{} = c.{}", quoted(parent), quoted(child)));
        equal.collect::<Vec<_>>().join(" and ")
    }

    /// Counts rows that refer to nothing.
    pub(super) async fn count(&self, client: &Client) -> Result<i64, StepError> {
        let sql = format!("select count(*) from {} c where {}", self.child, self.is_orphan(&[&self.parent]));
        Ok(client.query_one(&sql, &[], PATIENT).await?.get(0))
    }
}

/// Counts the orphans of every key.
pub(super) async fn count_all(client: &Client, keys: &[ForeignKey]) -> Result<Vec<i64>, StepError> {
    let mut counts = Vec::new();
    for key in keys {
        counts.push(key.count(client).await?);
    }
    Ok(counts)
}
