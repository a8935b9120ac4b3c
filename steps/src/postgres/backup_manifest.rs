//! The file `backup_manifest`, the server's own list of what a base backup must hold.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use lifeboat_engine::plan::hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::wal::Lsn;

/// The name of the file.
pub(super) const MANIFEST: &str = "backup_manifest";

/// What a base backup must hold.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// By path relative to the data directory.
    pub(super) files: BTreeMap<PathBuf, ManifestEntry>,
    /// The WAL that the data needs to become consistent.
    ranges: Vec<WalRange>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManifestEntry {
    pub(super) size: u64,
    /// In lower-case hexadecimal, if the manifest has SHA-256 checksums.
    pub(super) sha256: Option<String>,
}

/// WAL of one timeline, from its start to before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct WalRange {
    #[serde(rename = "Timeline")]
    pub(super) timeline: u32,
    #[serde(rename = "Start-LSN")]
    pub(super) start: Lsn,
    #[serde(rename = "End-LSN")]
    pub(super) end: Lsn,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "Files")]
    files: Vec<RawFile>,
    #[serde(rename = "WAL-Ranges", default)]
    ranges: Vec<WalRange>,
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

impl Manifest {
    /// Parses a manifest and proves it by its own checksum. The error completes "it is not usable: …".
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if !(1..=2).contains(&raw.version) {
            return Err(format!("its version is {}", raw.version));
        }
        if checksum_of(text).as_deref() != Some(&*raw.checksum.to_ascii_lowercase()) {
            return Err("it does not match its own checksum".to_owned());
        }
        if let Some(range) = raw.ranges.iter().find(|range| range.start >= range.end) {
            return Err(format!("its WAL goes from {} to {}", range.start, range.end));
        }
        let mut files = BTreeMap::new();
        for file in raw.files {
            let (path, entry) = file.entry()?;
            if files.insert(path.clone(), entry).is_some() {
                return Err(format!("it names {} twice", path.display()));
            }
        }
        Ok(Self { files, ranges: raw.ranges })
    }

    /// Returns the sum of the sizes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// Returns the sum of the sizes of the files below a path.
    pub(super) fn bytes_below(&self, path: &std::path::Path) -> u64 {
        self.files.iter().filter(|(file, _)| file.starts_with(path)).map(|(_, entry)| entry.size).sum()
    }

    /// Returns how many bytes of WAL the data needs.
    pub(super) fn wal_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end.0 - range.start.0).sum()
    }

    /// Says whether every file has a checksum that can be compared.
    pub(super) fn has_checksums(&self) -> bool {
        self.files.values().all(|file| file.sha256.is_some())
    }

    /// Returns the WAL range of a backup of a server that was on one timeline throughout.
    pub(super) fn only_range(&self) -> Result<WalRange, String> {
        match self.ranges[..] {
            [range] => Ok(range),
            _ => Err(format!("it names {} timelines, and one is usual", self.ranges.len())),
        }
    }
}

impl RawFile {
    fn entry(self) -> Result<(PathBuf, ManifestEntry), String> {
        let path = match (self.path, self.encoded) {
            (Some(path), None) => path.into(),
            (None, Some(encoded)) => {
                let bytes = unhex(&encoded).ok_or_else(|| format!("`{encoded}` encodes no path"))?;
                OsString::from_vec(bytes).into()
            }
            _ => return Err("an entry has no path, or two".to_owned()),
        };
        let sha256 = self.checksum.filter(|_| self.algorithm.as_deref() == Some("SHA256"));
        Ok((path, ManifestEntry { size: self.size, sha256: sha256.map(|text| text.to_ascii_lowercase()) }))
    }
}

/// The checksum covers everything before the line that it stands on, the last one.
fn checksum_of(text: &[u8]) -> Option<String> {
    let end = text.trim_ascii_end().iter().rposition(|byte| *byte == b'\n')? + 1;
    Some(hex(&Sha256::digest(&text[..end])))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: &str = r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }"#;

    fn manifest(files: &[&str], ranges: &[&str]) -> String {
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{}],\n\"WAL-Ranges\": [\n{}\n],\n",
            files.join(",\n"),
            ranges.join(",\n")
        );
        format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", hex(&Sha256::digest(&body)))
    }

    fn parse(files: &[&str], ranges: &[&str]) -> Result<Manifest, String> {
        Manifest::parse(manifest(files, ranges).as_bytes())
    }

    fn version() -> String {
        let sha = "AB".repeat(32);
        format!(
            r#"{{ "Path": "PG_VERSION", "Size": 3, "Checksum-Algorithm": "SHA256", "Checksum": "{sha}" }}"#
        )
    }

    #[test]
    fn files_and_wal_are_read() {
        let read = parse(&[&version(), r#"{ "Encoded-Path": "62ff", "Size": 7 }"#], &[RANGE]).expect("valid");
        assert_eq!((read.bytes(), read.wal_bytes()), (10, 0xd8));
        let file = &read.files[&PathBuf::from("PG_VERSION")];
        assert_eq!((file.size, file.sha256.clone()), (3, Some("ab".repeat(32))));
        let odd = PathBuf::from(OsString::from_vec(vec![b'b', 0xff]));
        assert_eq!(read.files[&odd], ManifestEntry { size: 7, sha256: None });
        assert!(!read.has_checksums());
        assert!(parse(&[&version()], &[RANGE]).expect("valid").has_checksums());
        let range = read.only_range().expect("one");
        assert_eq!((range.timeline, range.end.to_string().as_str()), (1, "0/2000100"));
    }

    #[test]
    fn any_change_is_noticed() {
        let good = manifest(&[&version()], &[RANGE]);
        for (from, to) in [("\"Size\": 3", "\"Size\": 4"), ("PG_VERSION", "PG_VERSIOM"), ("SHA256", "CRC32C")]
        {
            assert!(good.contains(from));
            let changed = good.replacen(from, to, 1);
            assert!(Manifest::parse(changed.as_bytes()).expect_err(from).contains("checksum"), "{from}");
        }
        assert!(Manifest::parse(&good.as_bytes()[..good.len() / 2]).is_err());
        assert!(Manifest::parse(&good.as_bytes()[..good.len() - 100]).is_err());
        assert!(Manifest::parse(b"{}").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let backwards = RANGE.replace("0/2000100", "0/2000000");
        assert!(parse(&[], &[&backwards]).is_err());
        assert!(parse(&[&version(), &version()], &[RANGE]).expect_err("twice").contains("twice"));
        for file in [r#"{ "Size": 7 }"#, r#"{ "Encoded-Path": "62f", "Size": 7 }"#] {
            assert!(parse(&[file], &[RANGE]).is_err(), "{file}");
        }
        for ranges in [&[][..], &[RANGE, RANGE]] {
            assert!(parse(&[], ranges).expect("valid").only_range().is_err());
        }
    }
}
