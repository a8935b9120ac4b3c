//! Reads a dump as it passes: where it was taken, which rows it holds, whether it is whole.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::details::Position;

/// What the client must know to be able to read past the first line of newer dumps.
pub(super) const SANDBOX: &[u8] = b"/*M!999999\\- enable the sandbox mode */";
/// Longer lines are rows; what they begin with is enough.
const KEPT: usize = 8 * 1024;

/// What a dump said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Where the binary log stood at its snapshot.
    pub(super) position: Option<Position>,
    /// The transactions that are in it.
    pub(super) gtid: Option<String>,
    /// Rows by `database.table`; `None` if it is written in a way that they cannot be counted.
    pub(super) rows: Option<BTreeMap<String, u64>>,
    /// Whether its last line says that it is complete.
    pub(super) complete: bool,
    pub(super) sandbox: bool,
}

/// Takes a dump in pieces and passes it on.
pub(super) struct Scan<W> {
    inner: W,
    found: Scanned,
    line: Vec<u8>,
    last: u8,
    database: String,
    /// The table whose rows follow, one on each line.
    filling: Option<String>,
    /// Within bodies of routines and triggers lines mean nothing.
    in_body: bool,
    first: bool,
}

impl<W: Write> Scan<W> {
    pub(super) fn new(inner: W) -> Self {
        let found = Scanned { rows: Some(BTreeMap::new()), ..Scanned::default() };
        Self {
            inner,
            found,
            line: Vec::new(),
            last: 0,
            database: String::new(),
            filling: None,
            in_body: false,
            first: true,
        }
    }

    /// Returns where it was passed on to, and what was found.
    pub(super) fn finish(mut self) -> (W, Scanned) {
        if !self.line.is_empty() {
            self.end_line();
        }
        (self.inner, self.found)
    }

    fn take(&mut self, piece: &[u8]) {
        let room = KEPT.saturating_sub(self.line.len()).min(piece.len());
        self.line.extend_from_slice(&piece[..room]);
        self.last = piece.last().copied().unwrap_or(self.last);
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let last = std::mem::take(&mut self.last);
        match &self.filling {
            Some(table) if line.first() == Some(&b'(') => {
                if let Some(rows) = &mut self.found.rows {
                    *rows.entry(table.clone()).or_default() += 1;
                }
                if last == b';' {
                    self.filling = None;
                }
            }
            _ => self.look(&String::from_utf8_lossy(&line)),
        }
        self.first = false;
        // The buffer is used again.
        self.line = line;
        self.line.clear();
    }

    fn look(&mut self, line: &str) {
        if let Some(delimiter) = line.strip_prefix("DELIMITER ") {
            self.in_body = delimiter.trim() != ";";
        }
        if self.in_body {
            return;
        }
        if !line.trim().is_empty() {
            self.found.complete = line.starts_with("-- Dump completed");
        }
        self.found.sandbox |= self.first && line.as_bytes().starts_with(SANDBOX);
        if let Some(name) = line.strip_prefix("USE `").and_then(|rest| rest.strip_suffix("`;")) {
            self.database = name.replace("``", "`");
        } else if let Some(rest) = line.strip_prefix("INSERT INTO `") {
            self.begin_rows(rest);
        } else if let Some(rest) = line.strip_prefix("-- CHANGE MASTER TO MASTER_LOG_FILE='") {
            self.found.position = position(rest);
        } else if let Some(rest) = line.strip_prefix("-- SET GLOBAL gtid_slave_pos='") {
            self.found.gtid = rest.split('\'').next().map(ToOwned::to_owned);
        }
    }

    fn begin_rows(&mut self, rest: &str) {
        let name = rest.trim_end().strip_suffix(" VALUES").and_then(|rest| {
            // Names of columns may stand between; a name of a table ends with a single quote of its own.
            let end = end_of_name(rest)?;
            Some(rest[..end].replace("``", "`"))
        });
        match name {
            Some(name) => self.filling = Some(format!("{}.{name}", self.database)),
            None => self.found.rows = None,
        }
    }
}

/// Finds the quote that ends a name: one that no other follows.
fn end_of_name(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'`', Some(b'`')) => at += 2,
            (b'`', _) => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// Reads `bin.000001', MASTER_LOG_POS=2213;`.
fn position(rest: &str) -> Option<Position> {
    let (file, rest) = rest.split_once("', MASTER_LOG_POS=")?;
    Some(Position { file: file.to_owned(), offset: rest.trim_end().trim_end_matches(';').parse().ok()? })
}

impl<W: Write> Write for Scan<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        let mut rest = &bytes[..count];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.take(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.take(rest);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DUMP: &str = "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n\
        -- CHANGE MASTER TO MASTER_LOG_FILE='bin.000007', MASTER_LOG_POS=2213;\n\nUSE `shop`;\n\
        INSERT INTO `t``x` VALUES\n(1,'a;'),\n(2,'(');\n(nothing)\nDELIMITER ;;\nCREATE PROCEDURE p()\n\
        INSERT INTO `evil` VALUES\n(1),\n(2);;\n-- Dump completed on never\nDELIMITER ;\n\
        INSERT INTO `u` VALUES\n(1);\nINSERT INTO `u` VALUES\n(2);\n\
        -- SET GLOBAL gtid_slave_pos='0-7-10,1-2-3';\n\n-- Dump completed on 2026-11-21 21:19:38\n";

    fn scan(pieces: &[&[u8]]) -> Scanned {
        let mut scan = Scan::new(Vec::new());
        pieces.iter().for_each(|piece| scan.write_all(piece).unwrap());
        let (passed, found) = scan.finish();
        assert_eq!(passed, pieces.concat());
        found
    }

    #[test]
    fn a_dump_says_where_it_was_taken_and_what_it_holds() {
        let found = scan(&[DUMP.as_bytes()]);
        assert_eq!(found.position, Some(Position { file: "bin.000007".into(), offset: 2213 }));
        assert_eq!(found.gtid.as_deref(), Some("0-7-10,1-2-3"));
        let rows = BTreeMap::from([("shop.t`x".to_owned(), 2), ("shop.u".to_owned(), 2)]);
        assert_eq!((found.rows, found.complete, found.sandbox), (Some(rows), true, true));
    }

    #[test]
    fn only_the_last_line_completes_a_dump() {
        let cut = DUMP.rfind("-- Dump").unwrap();
        assert!(!scan(&[&DUMP.as_bytes()[..cut]]).complete);
        assert!(!scan(&[DUMP.as_bytes(), b"INSERT INTO `v` VALUES\n"]).complete);
    }

    #[test]
    fn rows_that_cannot_be_counted_are_not_guessed() {
        assert_eq!(scan(&[b"INSERT INTO `u` VALUES (1),(2);\n"]).rows, None);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_mean_the_same(cuts in proptest::collection::vec(0..DUMP.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, DUMP.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &DUMP.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(scan(&pieces), scan(&[DUMP.as_bytes()]));
        }
    }
}
