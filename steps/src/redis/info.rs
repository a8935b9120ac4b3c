//! Reads what `INFO` tells.

use std::collections::BTreeMap;

/// The fields of an `INFO` answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Info(BTreeMap<String, String>);

/// How many keys one database holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct KeyCount {
    pub(super) keys: u64,
    /// Those of them that have a time to live.
    pub(super) expires: u64,
}

impl Info {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name) == "1"
    }

    /// Returns the count of each database that holds keys, by number.
    pub(super) fn keyspace(&self) -> BTreeMap<u32, KeyCount> {
        self.0
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("db")?.parse().ok()?, count(value))))
            .collect()
    }
}

fn count(value: &str) -> KeyCount {
    let field = |name: &str| {
        let fields = value.split(',').filter_map(|field| field.split_once('='));
        fields
            .into_iter()
            .find(|(found, _)| *found == name)
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or(0)
    };
    KeyCount { keys: field("keys"), expires: field("expires") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_key_counts_are_read() {
        let text = "# Persistence\r\nloading:0\r\nrdb_saves:12\r\n# Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=5\r\ndb12:keys=1,expires=0,avg_ttl=0\r\n";
        let info = Info::parse(text);
        assert_eq!(
            (info.flag("loading"), info.number("rdb_saves"), info.number("absent")),
            (false, Some(12), None)
        );
        let keyspace = info.keyspace();
        assert_eq!(keyspace[&0], KeyCount { keys: 3, expires: 1 });
        assert_eq!(keyspace[&12], KeyCount { keys: 1, expires: 0 });
        assert_eq!(keyspace.len(), 2);
    }
}
