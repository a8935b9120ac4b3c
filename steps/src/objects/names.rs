//! Names of objects as paths of files: a name is data, and may be anything.

use std::collections::{BTreeMap, BTreeSet};

/// A name that no file below a directory can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unusable {
    pub(super) name: String,
    pub(super) why: String,
}

/// Whether a file system takes two names that differ in case for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Tells,
    Folds,
}

/// What file systems allow in one name.
const SEGMENT_LIMIT: usize = 255;

/// Returns every name that cannot be a file, alone or beside the others. Names that end with `/` are directories.
pub(super) fn unusable<'n>(names: impl IntoIterator<Item = &'n str>, case: Case) -> Vec<Unusable> {
    let mut found = BTreeSet::new();
    let mut taken: BTreeMap<String, &str> = BTreeMap::new();
    let mut dirs: BTreeMap<String, &str> = BTreeMap::new();
    for name in names {
        let plain = name.strip_suffix('/').unwrap_or(name);
        if let Some(why) = plain.split('/').find_map(problem) {
            found.insert(Unusable { name: name.to_owned(), why: why.to_owned() });
            continue;
        }
        let mut parent = plain;
        while let Some((above, _)) = parent.rsplit_once('/') {
            dirs.entry(folded(above, case)).or_insert(name);
            parent = above;
        }
        let place = folded(plain, case);
        if name.ends_with('/') {
            dirs.entry(place).or_insert(name);
        } else if let Some(other) = taken.insert(place, name) {
            let why = format!("the file system takes it and `{}` for one", other.escape_debug());
            found.insert(Unusable { name: name.to_owned(), why });
        }
    }
    for (place, name) in &taken {
        if let Some(below) = dirs.get(place) {
            let why = format!("a file cannot be the directory of `{}`", below.escape_debug());
            found.insert(Unusable { name: (*name).to_owned(), why });
        }
    }
    found.into_iter().collect()
}

fn folded(text: &str, case: Case) -> String {
    match case {
        Case::Tells => text.to_owned(),
        Case::Folds => text.to_lowercase(),
    }
}

fn problem(segment: &str) -> Option<&'static str> {
    match segment {
        "" => Some("a part of it is empty"),
        "." | ".." => Some("`.` and `..` lead elsewhere"),
        _ if segment.len() > SEGMENT_LIMIT => Some("a part of it is longer than 255 bytes"),
        _ if segment.chars().any(|c| c == '\\' || c.is_control()) => {
            Some("it has a backslash or a control character in it")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(found: &[Unusable]) -> Vec<&str> {
        found.iter().map(|unusable| unusable.name.as_str()).collect()
    }

    #[test]
    fn names_that_lead_out_or_nowhere_are_found() {
        let long = "x".repeat(256);
        let bad = [
            "",
            "/etc/x",
            "../../etc/x",
            "a/../b",
            "a//b",
            "a/./b",
            "a\\b",
            "a\0b",
            "a\nb",
            "//",
            long.as_str(),
        ];
        for name in bad {
            assert_eq!(names(&unusable([name], Case::Tells)), [name], "{name:?}");
        }
        assert!(unusable(["a", "b/c", "b/ä é", "dir/", "dir/x", "...", ".hidden"], Case::Tells).is_empty());
    }

    #[test]
    fn a_file_is_no_directory() {
        assert_eq!(names(&unusable(["a", "a/b"], Case::Tells)), ["a"]);
        assert_eq!(names(&unusable(["a/b/c", "a/b"], Case::Tells)), ["a/b"]);
        assert_eq!(names(&unusable(["a", "a/"], Case::Tells)), ["a"]);
        assert!(unusable(["a", "ab/c"], Case::Tells).is_empty());
    }

    #[test]
    fn names_that_differ_in_case_collide_where_case_is_folded() {
        assert!(unusable(["Photo.jpg", "photo.JPG"], Case::Tells).is_empty());
        assert_eq!(names(&unusable(["Photo.jpg", "photo.JPG"], Case::Folds)), ["photo.JPG"]);
        assert_eq!(names(&unusable(["A", "a/b"], Case::Folds)), ["A"]);
    }
}
