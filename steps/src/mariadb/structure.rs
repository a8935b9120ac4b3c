//! What databases consist of, as the server describes it: to find out whether it changed, and whether it was restored.

use std::collections::BTreeMap;

use lifeboat_engine::plan::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::connect::{Client, DbError, PATIENT, literal, text};

/// A digest of each thing by its kind and name: `table shop.members`, `trigger shop.no_delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Structure(pub(super) BTreeMap<String, String>);

/// Kind, name and what makes it what it is, row by row; rows of one name belong together.
const PARTS: [&str; 7] = [
    "select if(table_type like '%VIEW', 'view', 'table'), table_schema, table_name,
       if(table_type like '%VIEW', '', concat_ws(' ', engine, table_collation, create_options))
     from information_schema.tables where table_schema in (@) order by 2, 3",
    "select if(t.table_type like '%VIEW', 'view', 'table'), c.table_schema, c.table_name,
       concat_ws(' ', c.column_name, c.column_type, c.is_nullable, ifnull(c.column_default, ''), c.extra, c.collation_name)
     from information_schema.columns c join information_schema.tables t using (table_schema, table_name)
     where c.table_schema in (@) order by 2, 3, c.ordinal_position",
    "select 'table', table_schema, table_name,
       concat_ws(' ', index_name, non_unique, seq_in_index, column_name, ifnull(sub_part, ''), index_type)
     from information_schema.statistics where table_schema in (@) order by 2, 3, index_name, seq_in_index",
    "select 'table', constraint_schema, table_name,
       concat_ws(' ', constraint_name, unique_constraint_name, referenced_table_name, update_rule, delete_rule)
     from information_schema.referential_constraints where constraint_schema in (@) order by 2, 3, constraint_name",
    "select lower(routine_type), routine_schema, routine_name, concat_ws(' ', ifnull(dtd_identifier, ''), routine_definition, sql_mode, security_type)
     from information_schema.routines where routine_schema in (@) order by 1, 2, 3",
    "select 'trigger', trigger_schema, trigger_name,
       concat_ws(' ', action_timing, event_manipulation, event_object_table, action_statement)
     from information_schema.triggers where trigger_schema in (@) order by 2, 3",
    "select 'event', event_schema, event_name, concat_ws(' ', event_definition, interval_value, interval_field, execute_at)
     from information_schema.events where event_schema in (@) order by 2, 3",
];

impl Structure {
    /// Reads what databases consist of.
    pub(super) async fn read(client: &mut Client, databases: &[String]) -> Result<Self, DbError> {
        let names: Vec<_> = databases.iter().map(|name| literal(name)).collect();
        let mut parts = BTreeMap::<String, Sha256>::new();
        if names.is_empty() {
            return Ok(Self::default());
        }
        for sql in PARTS {
            for row in client.rows(&sql.replace('@', &names.join(", ")), PATIENT).await? {
                let [kind, schema, name, what] = std::array::from_fn(|index| text(&row, index));
                let digest = parts.entry(format!("{kind} {schema}.{name}")).or_default();
                // Blanks at the ends of lines do not survive every dump.
                let what: Vec<&str> = what.lines().map(str::trim_end).collect();
                digest.update(what.join("\n").trim());
                digest.update([0]);
            }
        }
        Ok(Self(parts.into_iter().map(|(name, digest)| (name, hex(&digest.finalize()[..8]))).collect()))
    }

    /// Returns the same for a database of another name.
    pub(super) fn renamed(&self, from: &str, to: &str) -> Self {
        let rename = |name: &String| match name.split_once(' ') {
            Some((kind, rest)) => match rest.strip_prefix(&format!("{from}.")) {
                Some(rest) => format!("{kind} {to}.{rest}"),
                None => name.clone(),
            },
            None => name.clone(),
        };
        Self(self.0.iter().map(|(name, digest)| (rename(name), digest.clone())).collect())
    }

    /// Counts things of a kind.
    pub(super) fn count(&self, kind: &str) -> usize {
        self.0.keys().filter(|name| name.split(' ').next() == Some(kind)).count()
    }

    /// Names what the other one lacks, has more of, or has in another form.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let missing = self.0.iter().filter_map(|(name, digest)| match other.0.get(name) {
            None => Some(format!("{name} is missing")),
            Some(found) if found != digest => Some(format!("{name} is another one")),
            Some(_) => None,
        });
        let more = other.0.keys().filter(|name| !self.0.contains_key(*name));
        missing.chain(more.map(|name| format!("{name} is there in addition"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let of = |all: &[(&str, &str)]| {
            Structure(all.iter().map(|(name, digest)| ((*name).into(), (*digest).into())).collect())
        };
        let one = of(&[("table a.t", "1"), ("event a.e", "1"), ("view a.v", "2")]);
        let other = of(&[("table a.t", "2"), ("view a.v", "2"), ("view a.w", "2")]);
        assert_eq!(
            one.differences(&other),
            ["event a.e is missing", "table a.t is another one", "view a.w is there in addition"]
        );
        assert_eq!(one.renamed("a", "b").count("table"), 1);
        assert!(one.renamed("a", "b").renamed("b", "a").differences(&one).is_empty());
    }
}
