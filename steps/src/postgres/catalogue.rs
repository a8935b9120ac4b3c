//! What a database consists of, without its rows: a digest for each kind of object, and counts of rows.
//!
//! Two databases with the same digests have the same tables, columns, constraints and so on, by the server's own words
//! for them. Owners and grants are left out: a restore may change them on purpose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};

use super::connect::Client;
use super::database::PATIENT;

/// How many objects of a kind there are, and the digest of their definitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digest {
    pub(super) count: u64,
    /// In lower-case hexadecimal.
    pub(super) sha256: String,
}

/// By the kind of object.
pub(super) type Catalogue = BTreeMap<String, Digest>;

/// Rows by table, `schema.table`.
pub(super) type Counts = BTreeMap<String, u64>;

/// Objects of the user's: not of the system, not temporary, not part of an extension. `CLASS` and `OID` stand for the class
/// of the catalogue and the column with the oid.
const OWN: &str = "
    n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
    and not exists (select from pg_depend e where e.classid = 'CLASS'::regclass and e.objid = OID and e.deptype = 'e')";

/// A kind of object, and how it is found in a catalogue. `OWN` stands for the condition above.
struct Kind {
    name: &'static str,
    class: &'static str,
    oid: &'static str,
    /// What names one of them.
    identity: &'static str,
    /// What two of them must have in common to be the same.
    definition: &'static str,
    from: &'static str,
}

const KINDS: [Kind; 10] = [
    Kind {
        name: "tables and views",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I', n.nspname, c.relname)",
        definition: "format('%I.%I %s %s', n.nspname, c.relname, c.relkind, c.relpersistence)",
        from: "pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and OWN",
    },
    Kind {
        name: "columns",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I.%I', n.nspname, c.relname, a.attname)",
        definition: "format('%I.%I %s %I %s %s %s %s %s', n.nspname, c.relname,
            row_number() over (partition by c.oid order by a.attnum), a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))",
        from: "pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
            left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'm', 'f') and OWN",
    },
    Kind {
        name: "indexes",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%s', i.indexrelid::regclass)",
        definition: "pg_get_indexdef(i.indexrelid)",
        from: "pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace where OWN",
    },
    Kind {
        name: "constraints",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I.%I', n.nspname, c.relname, k.conname)",
        definition: "format('%I.%I %I %s', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid))",
        from: "pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
            where OWN",
    },
    Kind {
        name: "functions",
        class: "pg_proc",
        oid: "p.oid",
        identity: "format('%s', p.oid::regprocedure)",
        definition: "pg_get_functiondef(p.oid)",
        from: "pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.prokind <> 'a' and OWN",
    },
    Kind {
        name: "triggers",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I.%I', n.nspname, c.relname, t.tgname)",
        definition: "pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text",
        from: "pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
            where not t.tgisinternal and OWN",
    },
    Kind {
        name: "sequences",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I', n.nspname, c.relname)",
        definition: "format('%I.%I %s %s %s %s %s', n.nspname, c.relname, s.seqtypid::regtype, s.seqincrement, s.seqmin,
            s.seqmax, s.seqcycle)",
        from: "pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace where OWN",
    },
    Kind {
        name: "types",
        class: "pg_type",
        oid: "t.oid",
        identity: "format('%I.%I', n.nspname, t.typname)",
        definition: "format('%I.%I %s %s %s', n.nspname, t.typname, t.typtype, format_type(t.typbasetype, t.typtypmod),
            (select string_agg(quote_literal(e.enumlabel), ',' order by e.enumsortorder) from pg_enum e
             where e.enumtypid = t.oid))",
        from: "pg_type t join pg_namespace n on n.oid = t.typnamespace where t.typtype in ('e', 'd') and OWN",
    },
    Kind {
        name: "policies",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I.%I', n.nspname, c.relname, p.polname)",
        definition: "format('%I.%I %I %s %s %s', n.nspname, c.relname, p.polname, p.polcmd,
            pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))",
        from: "pg_policy p join pg_class c on c.oid = p.polrelid join pg_namespace n on n.oid = c.relnamespace where OWN",
    },
    Kind {
        name: "extensions",
        class: "pg_extension",
        oid: "x.oid",
        identity: "format('%I', x.extname)",
        definition: "format('%I %s', x.extname, x.extversion)",
        from: "pg_extension x",
    },
];

/// What is compared only between servers of one major version, whose words for it are the same.
const EXACT: [Kind; 2] = [
    Kind {
        name: "views",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I', n.nspname, c.relname)",
        definition: "pg_get_viewdef(c.oid)",
        from: "pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('v', 'm') and OWN",
    },
    Kind {
        name: "partitions",
        class: "pg_class",
        oid: "c.oid",
        identity: "format('%I.%I', n.nspname, c.relname)",
        definition: "format('%s %s', i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid))",
        from:
            "pg_class c join pg_inherits i on i.inhrelid = c.oid join pg_namespace n on n.oid = c.relnamespace
            where c.relispartition and c.relkind in ('r', 'p', 'f') and OWN",
    },
];

const TABLES: &str = "
    select format('%I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
      and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e')
    order by 1";

/// Reads the digests. Names are written with their schemas whatever the search path of the session was; it has none
/// afterwards.
pub(super) async fn read(client: &Client) -> Result<Catalogue, StepError> {
    client.batch("set search_path = ''", PATIENT).await?;
    let mut found = Catalogue::new();
    for kind in &KINDS {
        let sql = format!(
            "select count(*), encode(sha256(convert_to(coalesce(string_agg(o.def, E'\\n' order by o.def collate \"C\"), ''), \
             'UTF8')), 'hex') from (select {} from {}) o(def)",
            kind.definition,
            kind.from()
        );
        let row = client.query_one(&sql, &[], PATIENT).await?;
        let digest = Digest { count: row.get::<_, i64>(0).unsigned_abs(), sha256: row.get(1) };
        found.insert(kind.name.to_owned(), digest);
    }
    Ok(found)
}

impl Kind {
    fn from(&self) -> String {
        let own = OWN.replace("CLASS", self.class).replace("OID", self.oid);
        self.from.replace("OWN", &own)
    }
}

/// The digests of objects by their names, by the kind of object.
pub(super) type Objects = BTreeMap<String, BTreeMap<String, String>>;

/// Reads every object by its name, with a digest of its definition. The session has no search path afterwards.
pub(super) async fn objects(client: &Client) -> Result<Objects, StepError> {
    client.batch("set search_path = ''", PATIENT).await?;
    let mut found = Objects::new();
    for kind in KINDS.iter().chain(&EXACT) {
        // 64 bits: these tell versions of one object apart, nothing more.
        let sql = format!(
            "select o.name, left(encode(sha256(convert_to(coalesce(o.def, ''), 'UTF8')), 'hex'), 16) \
             from (select {}, {} from {}) o(name, def)",
            kind.identity,
            kind.definition,
            kind.from()
        );
        let rows = client.query(&sql, &[], PATIENT).await?;
        found.insert(kind.name.to_owned(), rows.iter().map(|row| (row.get(0), row.get(1))).collect());
    }
    Ok(found)
}

/// Compares digests, one check for each kind of object.
pub(super) fn compare(expected: &Catalogue, actual: &Catalogue) -> Vec<Check> {
    let one = |(name, expected): (&String, &Digest)| {
        let actual = actual.get(name);
        let show = |digest: &Digest| format!("{} ({})", digest.count, &digest.sha256[..12]);
        Check {
            name: format!("{name} are those of the dump"),
            expected: show(expected),
            actual: actual.map_or("not read".to_owned(), show),
            passed: actual == Some(expected),
        }
    };
    expected.iter().map(one).collect()
}

/// Counts the rows of every table. Ends early, with what it has, when `stop` is set.
pub(super) async fn count_rows(
    ctx: &StepContext,
    client: &Client,
    stop: &AtomicBool,
) -> Result<Counts, StepError> {
    let tables = client.query(TABLES, &[], PATIENT).await?;
    let mut counts = Counts::new();
    for (index, table) in tables.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let table: String = table.get(0);
        let row = client.query_one(&format!("select count(*) from only {table}"), &[], PATIENT).await?;
        counts.insert(table, row.get::<_, i64>(0).unsigned_abs());
        ctx.progress(Progress {
            done: index as u64 + 1,
            total: Some(tables.len() as u64),
            unit: Unit::Items,
            note: "counting rows".into(),
        });
    }
    Ok(counts)
}

/// Compares counts: one check for all tables, which names those that differ.
pub(super) fn compare_counts(expected: &Counts, actual: &Counts) -> Check {
    const SHOWN: usize = 10;
    let differ: Vec<_> = expected
        .iter()
        .filter(|(table, rows)| actual.get(*table) != Some(rows))
        .map(|(table, rows)| match actual.get(table) {
            Some(found) => format!("{table} has {found} rows, not {rows}"),
            None => format!("{table} is missing"),
        })
        .collect();
    let more = actual.keys().filter(|table| !expected.contains_key(*table)).count();
    let total: u64 = actual.values().sum();
    let mut found = match differ.len() {
        0 => format!("{total} rows in {} tables", actual.len()),
        _ => differ[..differ.len().min(SHOWN)].join("; "),
    };
    if differ.len() > SHOWN {
        found.push_str(&format!("; and {} more", differ.len() - SHOWN));
    }
    if more > 0 {
        found.push_str(&format!("; {more} tables more than in the dump"));
    }
    Check {
        name: "every table has the rows of the dump".into(),
        expected: format!("{} rows in {} tables", expected.values().sum::<u64>(), expected.len()),
        actual: found,
        passed: differ.is_empty() && more == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_differ_are_named() {
        let expected = Counts::from([("a.b".into(), 3), ("a.c".into(), 1)]);
        assert!(compare_counts(&expected, &expected).passed);
        let found = compare_counts(&expected, &Counts::from([("a.b".into(), 2), ("a.d".into(), 1)]));
        assert!(!found.passed);
        assert_eq!(found.actual, "a.b has 2 rows, not 3; a.c is missing; 1 tables more than in the dump");
    }
}
