//! The file `backup_manifest`: every file of a base backup with size and checksum.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use lifeboat_engine::plan::hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::wal::Lsn;

/// What a base backup must consist of.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) files: BTreeMap<PathBuf, Expected>,
    /// The WAL that the data needs to become consistent, in bytes.
    pub(super) wal_bytes: u64,
}

/// One file of a backup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) size: u64,
    /// In lower-case hexadecimal, if the manifest has SHA-256 checksums.
    pub(super) sha256: Option<String>,
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "Files")]
    files: Vec<WrittenFile>,
    #[serde(rename = "WAL-Ranges", default)]
    wal_ranges: Vec<WalRange>,
}

#[derive(Deserialize)]
struct WrittenFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Names that are not UTF-8, in hexadecimal.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct WalRange {
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

impl Manifest {
    /// Reads a manifest and proves it by its own checksum.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        check_itself(text)?;
        let written: Written = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let mut files = BTreeMap::new();
        for file in written.files {
            let sha256 = match file.algorithm.as_deref() {
                Some("SHA256") => file.checksum,
                _ => None,
            };
            let expected = Expected { size: file.size, sha256 };
            let path = path(file.path, file.encoded_path)?;
            if let Some(twice) = files.insert(path.clone(), expected) {
                return Err(format!("it names {} twice ({} bytes)", path.display(), twice.size));
            }
        }
        let wal_bytes = written.wal_ranges.iter().map(WalRange::bytes).sum::<Result<u64, String>>()?;
        Ok(Self { files, wal_bytes })
    }

    /// Returns the sum of the sizes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }

    /// Says whether every file has a checksum that is compared.
    pub(super) fn has_checksums(&self) -> bool {
        self.files.values().all(|file| file.sha256.is_some())
    }
}

/// The last line holds the SHA-256 of everything before it.
fn check_itself(text: &[u8]) -> Result<(), String> {
    let trimmed = text.trim_ascii_end();
    let line_start = trimmed.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let line = String::from_utf8_lossy(&trimmed[line_start..]);
    let stated = line
        .trim()
        .strip_prefix("\"Manifest-Checksum\":")
        .map(|rest| rest.trim().trim_end_matches('}').trim_matches('"').to_owned())
        .ok_or("its last line, with its own checksum, is missing")?;
    let actual = hex(&Sha256::digest(&text[..line_start]));
    if stated == actual { Ok(()) } else { Err("its own checksum does not match".to_owned()) }
}

fn path(plain: Option<String>, encoded: Option<String>) -> Result<PathBuf, String> {
    match (plain, encoded) {
        (Some(path), _) => Ok(path.into()),
        (None, Some(encoded)) => {
            let digits = encoded.as_bytes();
            let bytes: Option<Vec<u8>> = digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect();
            bytes.map(|bytes| OsString::from_vec(bytes).into()).ok_or_else(|| format!("odd path {encoded}"))
        }
        (None, None) => Err("an entry has no path".to_owned()),
    }
}

impl WalRange {
    fn bytes(&self) -> Result<u64, String> {
        self.end
            .0
            .checked_sub(self.start.0)
            .ok_or_else(|| format!("its WAL ends at {} before it starts", self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: &str) -> String {
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let checksum = hex(&Sha256::digest(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n")
    }

    #[test]
    fn files_and_wal_are_read() {
        let text = manifest(
            "{ \"Path\": \"PG_VERSION\", \"Size\": 3, \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"ab\" },\n\
             { \"Encoded-Path\": \"62ff\", \"Size\": 7 }\n",
        );
        let manifest = Manifest::parse(text.as_bytes()).expect("valid");
        assert_eq!((manifest.bytes(), manifest.wal_bytes), (10, 0xd8));
        assert!(!manifest.has_checksums());
        let odd = PathBuf::from(OsString::from_vec(vec![b'b', 0xff]));
        assert_eq!(manifest.files[&odd], Expected { size: 7, sha256: None });
    }

    #[test]
    fn a_changed_or_cut_manifest_is_refused() {
        let text = manifest("{ \"Path\": \"PG_VERSION\", \"Size\": 3 }\n");
        let changed = text.replace("\"Size\": 3", "\"Size\": 4");
        assert!(Manifest::parse(changed.as_bytes()).expect_err("changed").contains("checksum"));
        let cut = &text.as_bytes()[..text.len() - 100];
        assert!(Manifest::parse(cut).is_err());
    }
}
