//! One record of the journal as it is stored, and what must hold of it.

use super::chain::{Hash, Head};
use crate::model::{EventClass, EventKind, Seq};

/// One event as it is stored: what the chain covers, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: Seq,
    /// Milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// `essential` or `advisory`.
    pub class: String,
    pub kind: String,
    /// The event as JSON.
    pub body: String,
    /// Absent for an advisory one.
    pub hash: Option<Vec<u8>>,
}

/// The first event that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    pub seq: Seq,
    pub what: String,
}

impl Record {
    pub(super) fn from_sql(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            at_ms: row.get(1)?,
            class: row.get(2)?,
            kind: row.get(3)?,
            body: row.get(4)?,
            hash: row.get(5)?,
        })
    }

    /// Checks that the record follows the head, moves the head past it, and returns what it says: nothing for an advisory
    /// kind that this program does not know.
    pub fn check(&self, head: &mut Head) -> Result<Option<EventKind>, Misfit> {
        let wrong = |what: &str| Err(Misfit { seq: self.seq, what: what.to_owned() });
        if self.seq != head.seq + 1 {
            let missing = head.seq + 1;
            return Err(Misfit { seq: missing, what: format!("event {missing} is missing") });
        }
        let kind = self.decode()?;
        if kind.as_ref().is_some_and(|kind| class_word(kind.class()) != self.class) {
            return wrong("its class does not fit its kind");
        }
        if tag(&self.body) != Some(self.kind.as_str()) {
            return wrong("its kind does not fit its content");
        }
        if self.class == "advisory" {
            head.push_advisory(self.seq);
            return Ok(kind);
        }
        let expected: Hash = head.push_essential(self.seq, self.at_ms, &self.body);
        if self.hash.as_deref() != Some(&expected) {
            return wrong("its hash does not fit, so it or an event before it was changed");
        }
        Ok(kind)
    }

    /// Reads what the record says.
    pub(super) fn decode(&self) -> Result<Option<EventKind>, Misfit> {
        match serde_json::from_str(&self.body) {
            Ok(kind) => Ok(Some(kind)),
            Err(_) if self.class == "advisory" => Ok(None),
            Err(error) => {
                let what = format!("`{}` cannot be read: {error}", self.kind);
                Err(Misfit { seq: self.seq, what })
            }
        }
    }
}

/// The word that a class is stored as.
pub(super) fn class_word(class: EventClass) -> &'static str {
    match class {
        EventClass::Essential => "essential",
        EventClass::Advisory => "advisory",
    }
}

/// The kind that a stored event names: its tag always stands first.
pub(super) fn tag(body: &str) -> Option<&str> {
    body.strip_prefix(r#"{"kind":""#)?.split('"').next()
}
