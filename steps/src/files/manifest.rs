//! What a backup of files says of each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use lifeboat_engine::step::StepError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::attributes::Attributes;
use super::codes;

/// The name of the manifest and of the archive within a backup.
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const ARCHIVE: &str = "files.tar.zst";

const FORMAT: u32 = 1;

/// A path as bytes; in JSON with `%XX` for what is no printable text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RawPath(pub(super) PathBuf);

/// A directory tree: its root, named `.`, first, and each directory before what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) entries: Vec<Entry>,
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) path: RawPath,
    #[serde(flatten)]
    pub(super) content: Content,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<String>,
    /// Seconds and nanoseconds since 1970 UTC.
    pub(super) mtime: (i64, u32),
    /// SHA-256 of extended attributes and access lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) attributes: Option<String>,
    /// Those attributes of them that programs give to files.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub(super) user_attributes: Attributes,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Content {
    File { size: u64, sha256: String },
    Dir,
    Symlink { target: RawPath },
}

/// What to do with links that lead out of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutsideLinks {
    Refuse,
    Keep,
}

impl Manifest {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self { format: FORMAT, entries }
    }

    /// Reads a manifest and proves that nothing in it leads out of the tree.
    pub(super) fn parse(bytes: &[u8], links: OutsideLinks) -> Result<Self, StepError> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| unsafe_manifest("it cannot be understood").caused_by(&error))?;
        if manifest.format != FORMAT {
            let problem =
                format!("it has format {}, and this Lifeboat knows format {FORMAT}", manifest.format);
            return Err(unsafe_manifest(&problem));
        }
        manifest.check(links)?;
        Ok(manifest)
    }

    fn check(&self, links: OutsideLinks) -> Result<(), StepError> {
        let mut dirs: BTreeSet<&Path> = BTreeSet::new();
        let mut seen: BTreeSet<&Path> = BTreeSet::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let path = entry.path.0.as_path();
            let shown = &entry.path;
            if index == 0 {
                if path != Path::new(".") || entry.content != Content::Dir {
                    return Err(unsafe_manifest("it does not begin with the root directory"));
                }
                continue;
            }
            if !is_plain(path) {
                return Err(unsafe_manifest(&format!("the path `{shown}` leads out of its directory")));
            }
            if !seen.insert(path) {
                return Err(unsafe_manifest(&format!("the path `{shown}` stands in it twice")));
            }
            let parent = path.parent().unwrap_or(Path::new(""));
            if parent != Path::new("") && !dirs.contains(parent) {
                return Err(unsafe_manifest(&format!("`{shown}` is in something that is no directory")));
            }
            match &entry.content {
                Content::Dir => {
                    dirs.insert(path);
                }
                Content::Symlink { target }
                    if links == OutsideLinks::Refuse && leads_out(path, &target.0) =>
                {
                    let problem = format!("the link `{shown}` leads out of the directory, to `{target}`");
                    return Err(unsafe_manifest(&problem)
                        .help("if the link is meant to be restored, give the step `outside_links: keep`"));
                }
                Content::Symlink { .. } | Content::File { .. } => {}
            }
        }
        if self.entries.is_empty() { Err(unsafe_manifest("it is empty")) } else { Ok(()) }
    }

    /// Returns the files with their sizes and checksums, by path.
    pub(super) fn files(&self) -> BTreeMap<&Path, (u64, &str, &Entry)> {
        let entries = self.entries.iter();
        entries
            .filter_map(|entry| match &entry.content {
                Content::File { size, sha256 } => {
                    Some((entry.path.0.as_path(), (*size, sha256.as_str(), entry)))
                }
                Content::Dir | Content::Symlink { .. } => None,
            })
            .collect()
    }

    /// Returns the sum of the sizes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files().values().map(|(size, ..)| size).sum()
    }
}

/// Says whether a path has only plain names in it.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    !bytes.is_empty()
        && !bytes.contains(&0)
        && bytes.split(|&byte| byte == b'/').all(|name| !name.is_empty() && name != b"." && name != b"..")
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Says whether a link at `path` leads out of the tree, judged by its text.
pub(super) fn leads_out(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return true,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

fn unsafe_manifest(problem: &str) -> StepError {
    StepError::permanent(codes::LB1405, format!("the manifest of the backup is refused: {problem}"))
        .help("choose another backup with `backup`; nothing was written")
}

impl std::fmt::Display for RawPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for chunk in self.0.as_os_str().as_bytes().utf8_chunks() {
            for character in chunk.valid().chars() {
                if character == '%' || character.is_control() {
                    character
                        .encode_utf8(&mut [0; 4])
                        .bytes()
                        .try_for_each(|byte| write!(f, "%{byte:02X}"))?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
        }
        Ok(())
    }
}

impl RawPath {
    fn unescape(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            if first == b'%' {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &after[2..];
            } else {
                bytes.push(first);
                rest = after;
            }
        }
        Some(Self(PathBuf::from(OsStr::from_bytes(&bytes))))
    }
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::unescape(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no escaped path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, content: Content) -> Entry {
        let path = RawPath(path.into());
        let (user, group, attributes, user_attributes) = (None, None, None, Attributes::new());
        let (mode, uid, gid, mtime) = (0o644, 0, 0, (0, 0));
        Entry { path, content, mode, uid, gid, user, group, mtime, attributes, user_attributes }
    }

    fn file() -> Content {
        Content::File { size: 0, sha256: String::new() }
    }

    fn link(target: &str) -> Content {
        Content::Symlink { target: RawPath(target.into()) }
    }

    fn parse(entries: Vec<Entry>, links: OutsideLinks) -> Result<Manifest, StepError> {
        let all = std::iter::once(entry(".", Content::Dir)).chain(entries).collect();
        Manifest::parse(&serde_json::to_vec(&Manifest::new(all)).expect("can be written"), links)
    }

    #[test]
    fn a_plain_tree_is_accepted() {
        let entries = vec![
            entry("a", Content::Dir),
            entry("a/b.txt", file()),
            entry("a/link", link("../c")),
            entry("c", file()),
        ];
        assert!(parse(entries, OutsideLinks::Refuse).is_ok());
    }

    #[test]
    fn nothing_leads_out_of_the_tree() {
        for bad in ["../a", "/etc/passwd", "a/../../b", "a//b", "", "./a", "a/.", "a\0b"] {
            let error = parse(vec![entry("a", Content::Dir), entry(bad, file())], OutsideLinks::Keep);
            assert_eq!(error.expect_err(bad).code, codes::LB1405, "{bad:?}");
        }
        let below_link = vec![entry("l", link("elsewhere")), entry("l/f", file())];
        assert!(parse(below_link, OutsideLinks::Keep).is_err());
        let twice = vec![entry("a", file()), entry("a", link("b"))];
        assert!(parse(twice, OutsideLinks::Keep).is_err());
        let orphan = vec![entry("no/parent", file())];
        assert!(parse(orphan, OutsideLinks::Keep).is_err());
    }

    #[test]
    fn links_that_lead_out_are_refused_unless_they_are_meant() {
        for out in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(parse(vec![entry("l", link(out))], OutsideLinks::Refuse).is_err(), "{out}");
            assert!(parse(vec![entry("l", link(out))], OutsideLinks::Keep).is_ok(), "{out}");
        }
    }

    proptest! {
        #[test]
        fn any_path_survives_json(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let path = RawPath(PathBuf::from(OsStr::from_bytes(&bytes)));
            let text = serde_json::to_string(&path).expect("can be written");
            prop_assert_eq!(serde_json::from_str::<RawPath>(&text).expect("can be read"), path);
        }
    }
}
