//! Reads `backup_manifest`, the server's own list of what a base backup must hold.

use std::collections::BTreeMap;

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::postgres::codes;
use crate::postgres::wal::Lsn;

/// The name of the file.
pub(super) const MANIFEST: &str = "backup_manifest";

/// What a base backup must hold.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// By path relative to the data directory.
    pub(super) files: BTreeMap<Vec<u8>, Entry>,
    pub(super) timeline: u32,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: u64,
    /// In lower-case hexadecimal.
    pub(super) sha256: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "Files")]
    files: Vec<RawFile>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<RawRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// In hexadecimal, for names that are not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl Manifest {
    /// Parses a manifest and checks its own checksum. Every file must have a SHA-256.
    pub(super) fn parse(text: &[u8]) -> Result<Self, StepError> {
        let raw: Raw = serde_json::from_slice(text).map_err(|error| invalid(&error))?;
        if !(1..=2).contains(&raw.version) {
            return Err(invalid(&format_args!("its version is {}", raw.version)));
        }
        if checksum_of(text).as_deref() != Some(&*raw.checksum.to_ascii_lowercase()) {
            return Err(invalid(&"it does not match its own checksum"));
        }
        let [range] = &raw.ranges[..] else {
            return Err(invalid(&format_args!("it names {} timelines, and one is usual", raw.ranges.len())));
        };
        if range.start >= range.end {
            return Err(invalid(&format_args!("its WAL goes from {} to {}", range.start, range.end)));
        }
        let (timeline, start, stop) = (range.timeline, range.start, range.end);
        let files = raw.files.into_iter().map(RawFile::entry).collect::<Option<_>>();
        let files = files.ok_or_else(|| invalid(&"a file has no name or no SHA-256"))?;
        Ok(Self { files, timeline, start, stop })
    }
}

impl RawFile {
    fn entry(self) -> Option<(Vec<u8>, Entry)> {
        let path = match (self.path, self.encoded) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(encoded)) => unhex(&encoded)?,
            _ => return None,
        };
        let sha256 = self.checksum.filter(|_| self.algorithm.as_deref() == Some("SHA256"))?;
        Some((path, Entry { size: self.size, sha256: sha256.to_ascii_lowercase() }))
    }
}

/// The checksum covers everything before the line that it stands on.
fn checksum_of(text: &[u8]) -> Option<String> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let end = body.iter().rposition(|byte| *byte == b'\n')? + 1;
    Some(hex(&Sha256::digest(&text[..end])))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn invalid(problem: &dyn std::fmt::Display) -> StepError {
    StepError::permanent(codes::LB1215, format!("{MANIFEST} of the base backup is not usable: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_checksum(body: &str) -> String {
        format!("{body}\n\"Manifest-Checksum\": \"{}\"}}\n", hex(&Sha256::digest(format!("{body}\n"))))
    }

    fn manifest() -> String {
        let sha = "a".repeat(64);
        with_checksum(&format!(
            r#"{{ "PostgreSQL-Backup-Manifest-Version": 1,
"Files": [
{{ "Path": "PG_VERSION", "Size": 3, "Checksum-Algorithm": "SHA256", "Checksum": "{sha}" }},
{{ "Encoded-Path": "62ff", "Size": 0, "Checksum-Algorithm": "SHA256", "Checksum": "{sha}" }}
],
"WAL-Ranges": [
{{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }}
],"#
        ))
    }

    #[test]
    fn a_manifest_is_read() {
        let manifest = Manifest::parse(manifest().as_bytes()).expect("is valid");
        assert_eq!(manifest.files[&b"PG_VERSION"[..]].size, 3);
        assert!(manifest.files.contains_key(&b"b\xff"[..]));
        assert_eq!((manifest.timeline, manifest.stop.to_string().as_str()), (1, "0/2000100"));
    }

    #[test]
    fn any_change_is_noticed() {
        let good = manifest();
        for (from, to) in [("\"Size\": 3", "\"Size\": 4"), ("PG_VERSION", "PG_VERSIOM"), ("SHA256", "CRC32C")]
        {
            assert!(good.contains(from));
            assert!(Manifest::parse(good.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
        }
        assert!(Manifest::parse(&good.as_bytes()[..good.len() / 2]).is_err());
        assert!(Manifest::parse(b"{}").is_err());
    }
}
