//! A file of payments, line by line.
//!
//! A line is a row: no field goes over its end. A quotation mark that nobody closes thus spoils one line, not the file.

use std::path::Path;

use crate::error::AnyError;
use crate::uploads;

/// The first line of every such file.
const HEADER: [&str; 5] = ["reference", "name", "email", "amount_cents", "method"];
const METHODS: [&str; 3] = ["cash", "card", "transfer"];
/// No file of payments is larger; a video by mistake is.
const LARGEST: u64 = 64 * 1024 * 1024;
const MOST_CENTS: i64 = 100_000_000;

/// A file that was read whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Captured {
    pub(super) name: String,
    pub(super) sha256: String,
    pub(super) lines: Vec<Line>,
}

/// A line after the first one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// Counted from 1, with the header.
    pub(super) number: i64,
    /// As it stands in the file; what is no text is replaced.
    pub(super) content: String,
    /// What it says, or why it cannot be entered.
    pub(super) row: Result<Row, String>,
}

/// A payment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) reference: String,
    pub(super) name: String,
    pub(super) email: String,
    pub(super) amount_cents: i64,
    pub(super) method: String,
}

/// Returns the name by which a file is recorded.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Reads a file. What is no file of payments at all is an error, with nothing read.
pub(super) fn read(path: &Path) -> Result<Captured, AnyError> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > LARGEST {
        return Err(format!(
            "{} has {size} bytes: no file of payments is larger than {LARGEST}",
            path.display()
        )
        .into());
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let lines = parse(&bytes).map_err(|problem| format!("{}: {problem}", path.display()))?;
    Ok(Captured { name: name(path), sha256: uploads::checksum(&bytes), lines })
}

fn parse(bytes: &[u8]) -> Result<Vec<Line>, String> {
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').zip(1..);
    let Some((first, _)) = lines.next() else { return Err("the file is empty".to_owned()) };
    let header = text(first).and_then(fields);
    if header.as_deref() != Ok(&HEADER.map(ToOwned::to_owned)) {
        return Err(format!("the first line is not `{}`: this is no file of payments", HEADER.join(",")));
    }
    let lines: Vec<_> = lines.map(|(bytes, number)| line(bytes, number)).collect();
    if lines.is_empty() { Err("there is no line after the first one".to_owned()) } else { Ok(lines) }
}

fn line(bytes: &[u8], number: i64) -> Line {
    let content = String::from_utf8_lossy(bytes).trim_end_matches(['\r', '\n']).replace('\0', "\u{fffd}");
    let row = if bytes.ends_with(b"\n") {
        text(bytes).and_then(row)
    } else {
        // Even if it can be read: an amount may have lost its last digits.
        Err("the file ends within this line; what came after it was not received".to_owned())
    };
    Line { number, content, row }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.chars().any(char::is_control) { Err("holds control characters".to_owned()) } else { Ok(text) }
}

fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let record = reader.records().next().transpose().map_err(|error| error.to_string())?;
    Ok(record.map(|record| record.iter().map(|field| field.trim().to_owned()).collect()).unwrap_or_default())
}

fn row(text: &str) -> Result<Row, String> {
    let found = fields(text)?;
    let count = found.len();
    let Ok([reference, name, email, amount, method]) = <[String; 5]>::try_from(found) else {
        return Err(format!("has {count} fields instead of {}", HEADER.len()));
    };
    for (what, value) in [("reference", &reference), ("name", &name)] {
        if value.is_empty() {
            return Err(format!("has no {what}"));
        }
    }
    if !email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.')) {
        return Err(format!("email `{email}` is no address"));
    }
    if !METHODS.contains(&method.as_str()) {
        return Err(format!("method `{method}` is none of {}", METHODS.join(", ")));
    }
    let amount_cents = cents(&amount)?;
    Ok(Row { reference, name, email: email.to_lowercase(), amount_cents, method })
}

fn cents(text: &str) -> Result<i64, String> {
    let cents: i64 =
        text.parse().map_err(|_| format!("amount_cents `{text}` is no whole number of cents"))?;
    if (1..=MOST_CENTS).contains(&cents) {
        Ok(cents)
    } else {
        Err(format!("amount_cents {cents} is not between 1 and {MOST_CENTS}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "reference,name,email,amount_cents,method\n";

    fn lines(rest: &[u8]) -> Vec<Line> {
        parse(&[FIRST.as_bytes(), rest].concat()).unwrap()
    }

    fn problem(rest: &[u8]) -> String {
        lines(rest)[0].row.clone().unwrap_err()
    }

    #[test]
    fn a_line_is_a_payment() {
        let read = lines(b"a1,\"Adler, Ada\",Ada@Example.org,1250,card\r\na2,Bo,bo@example.org,1,cash\n");
        let first = read[0].row.as_ref().unwrap();
        assert_eq!((first.name.as_str(), first.email.as_str()), ("Adler, Ada", "ada@example.org"));
        assert_eq!((first.amount_cents, first.method.as_str(), read[0].number), (1250, "card", 2));
        assert!(read[1].row.is_ok());
    }

    #[test]
    fn what_cannot_be_entered_says_why() {
        for (line, why) in [
            (&b"a1,Ada,ada@example.org,12,50,card\n"[..], "has 6 fields instead of 5"),
            (b"a1,Ada,ada@example.org,12.50,card\n", "no whole number of cents"),
            (b"a1,Ada,ada@example.org,-5,card\n", "not between 1"),
            (b"a1,Ada,ada@example.org,5,cheque\n", "method `cheque`"),
            (b"a1,Ada,ada,5,card\n", "no address"),
            (b",Ada,ada@example.org,5,card\n", "no reference"),
            (b"\n", "has 0 fields"),
            (b"a1,\"Ada,ada@example.org,5,card\n", "has 2 fields"),
            (b"a1,Ad\xe4,ada@example.org,5,card\n", "not UTF-8"),
            (b"a1,Ad\x00,ada@example.org,5,card\n", "control characters"),
            (b"a1,Ada,ada@example.org,5,card", "ends within this line"),
        ] {
            assert!(problem(line).contains(why), "{why}: {}", problem(line));
        }
    }

    #[test]
    fn one_bad_line_spoils_no_other() {
        let read = lines(b"a1,\"Ada,ada@example.org,5,card\na2,Bo,bo@example.org,1,cash\na3,B");
        let right: Vec<_> = read.iter().map(|line| line.row.is_ok()).collect();
        assert_eq!(right, [false, true, false]);
    }

    #[test]
    fn another_file_is_refused_as_a_whole() {
        for bytes in [&b""[..], b"\x00\xff\x00\xff", b"reference;name;email\nx;y;z\n", FIRST.as_bytes()] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
