//! One record of the journal as one line of JSON, in a form so strict that the chain can be checked with a shell.
//!
//! `{"seq":1,"at_ms":2,"class":"essential","hash":"…","event":{…}}`: what stands between `"event":` and the last brace is,
//! byte for byte, what the chain covers. An advisory event has an empty hash.

use crate::journal::Record;
use crate::plan::hex;

const HASH_BYTES: usize = 32;

/// Writes a record as a line, without its break.
pub(super) fn of(record: &Record) -> String {
    let Record { seq, at_ms, class, body, hash, .. } = record;
    let hash = hash.as_deref().map(hex).unwrap_or_default();
    format!(r#"{{"seq":{seq},"at_ms":{at_ms},"class":"{class}","hash":"{hash}","event":{body}}}"#)
}

/// Reads a line; `None` if it is not exactly what [`of`] writes.
pub(super) fn read(line: &str) -> Option<Record> {
    let rest = line.strip_prefix(r#"{"seq":"#)?;
    let (seq, rest) = rest.split_once(r#","at_ms":"#)?;
    let (at_ms, rest) = rest.split_once(r#","class":""#)?;
    let (class, rest) = rest.split_once(r#"","hash":""#)?;
    let (hash, rest) = rest.split_once(r#"","event":"#)?;
    let body = rest.strip_suffix('}')?;
    let kind = body.strip_prefix(r#"{"kind":""#)?.split('"').next()?;
    let record = Record {
        seq: seq.parse().ok()?,
        at_ms: at_ms.parse().ok()?,
        class: class.to_owned(),
        kind: kind.to_owned(),
        body: body.to_owned(),
        hash: if hash.is_empty() { None } else { Some(bytes(hash)?) },
    };
    let known = matches!((class, record.hash.is_some()), ("essential", true) | ("advisory", false));
    // There is one way to write a number, and one to write a line.
    (known && of(&record) == line).then_some(record)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 2 * HASH_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits
        .then(|| (0..HASH_BYTES).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(class: &str, hash: Option<Vec<u8>>) -> Record {
        let body = r#"{"kind":"noted","text":"\",\"event\":}{"}"#.to_owned();
        Record { seq: 7, at_ms: -3, class: class.into(), kind: "noted".into(), body, hash }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for record in [record("essential", Some(vec![0xAB; 32])), record("advisory", None)] {
            assert_eq!(read(&of(&record)).as_ref(), Some(&record));
        }
    }

    #[test]
    fn what_could_be_written_in_another_way_is_refused() {
        let line = of(&record("advisory", None));
        let other = [
            line.replace("\"seq\":7", "\"seq\":07"),
            line.replace("\"seq\":7", "\"seq\":+7"),
            line.replace("\"seq\"", " \"seq\""),
            line.replace("advisory", "essential"),
            line.replace("\"hash\":\"\"", "\"hash\":\"ab\""),
            format!("{line} "),
            String::new(),
        ];
        for line in other {
            assert_eq!(read(&line), None, "{line}");
        }
    }
}
