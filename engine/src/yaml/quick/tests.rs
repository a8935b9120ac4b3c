use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::read;
use crate::diagnostic::{Diagnostics, Source};
use crate::yaml::parse::parse_all;

/// Compares the two trees of a text; says whether it was read here.
fn is_read_alike(text: &str) -> bool {
    let Some(node) = read(text) else { return false };
    let mut out = Diagnostics::new();
    let whole = parse_all(&Source::new("t.yaml", text), &mut out);
    assert!(out.is_empty(), "{text:?} has problems: {out:?}");
    assert_eq!(Some(node), whole, "{text:?}");
    true
}

#[test]
fn what_runbooks_are_written_in_is_read_here() {
    for text in [
        "a: 1\n",
        "a: 1",
        "# first\n\na: é # last\nb: x#y\n# end\n",
        "a b: c\n\"d\": 'it''s'\n'e': \"\\\"x\\\" \\\\ \\n\"\n",
        "a:\n  b: 1\n\n  # between\n  c:\n    d: 2\ne: 3\n",
        "a:\n  - 1\n  - two words\n  - b: 1\n    c: 2\n  -   d: 3\n      e: 4\nf: 5\n",
        "a:\n- 1\n- b: 1\n  c: 2\nd: 3\n",
        "a:\n  - - 1\n    - 2\n  - - 3\n",
        "a: { b: 1, c: \"{{ d }}\", 'e f': [1, x y, { z: -1 }] }\nb: []\nc: {}\n",
        "a: {\n    b: http://x:80/y,\n\n    c: [\n      1, 2\n    ]\n  } # end\n",
        "a: |\n  one\n    two # three\n\n  : four\nb: |-\n  x\n\n\nc: 1\n",
        "a:\n  - b: >\n      one\n      two\n\n      three\n    # between\n    c: >-\n      x\n",
        "a: rows[0].n > 0, x\nb: -1\nc: a:b\nd: ~\ne:\n  text\n",
    ] {
        assert!(is_read_alike(text), "{text:?}");
    }
}

#[test]
fn what_is_not_certain_is_left_to_the_parser() {
    for text in [
        "",
        "a",
        "- a\n",
        "a: &x 1\n",
        "a: *x\n",
        "a: !!str 1\n",
        "? a\n: b\n",
        "---\na: 1\n",
        "a: 1\n...\n",
        "a: 1\n--- x\n",
        "%YAML 1.2\n---\na: 1\n",
        "a: 1\na: 2\n",
        "a: { b: 1, b: 2 }\n",
        "<<: { a: 1 }\n",
        "a:\n",
        "a: { b: }\n",
        "a: [b: 1]\n",
        "a: [1,]\n",
        "a: one\n  two\n",
        "a: \"one\n  two\"\n",
        "a: \"\\x41\"\n",
        "a: b: c\n",
        "a: [1\n",
        "a: 'b\n",
        "a:\tb\n",
        "a: 1\r\nb: 2\r\n",
        "a: \u{1}\n",
        "a: \u{85}\n",
        "\u{feff}a: 1\n",
        "a: |2\n    b\n",
        "a: |+\n  b\n\n",
        "a: >\n  b\n    c\n",
        "a: |\n\n  b\n",
        "a:\n    b: 1\n  c: 2\n",
        "a: 1\n b: 2\n",
        "a: [\n1]\n",
    ] {
        assert!(read(text).is_none(), "{text:?}");
    }
    let deep = format!("a: {}{}\n", "[".repeat(100), "]".repeat(100));
    assert!(read(&deep).is_none());
}

const PARTS: &[&str] = &[
    "a:",
    "b: ",
    "c: 1",
    "d: x y ",
    "- e",
    "- ",
    "-",
    "- f: 2",
    "- - g",
    "h: |",
    "i: >",
    "j: |-",
    "k: >-",
    "# l",
    "m: # n",
    "o: [1, p q",
    "]",
    "q: { r: 1,",
    "}",
    "{ s: [t], u: \"v\" }",
    "[w, 'x', {}]",
    "\"y\": z",
    "'a'''",
    "b: \"c\" # d",
    "e: f # g",
    "h: i#j",
    "k: l: m",
    "n: [o: p]",
    "q: -r",
    "s: - t",
    "u: é",
    "v: \"\\n\\\"\"",
    "w: http://x:1/",
    "x: {y: 1}",
    "z: [a,b]",
    "text",
    "",
    "  ",
    "---",
    "...",
    "k: 'a' b",
    "k:v",
    ",",
    "l: ~",
    "a: 2",
    "- [x]: y",
    "- \"x\": y",
    "- {x: y}: z",
    "k : v",
    "[k : v]",
    "m: \"\"",
    "n: ''",
    "- |",
    "- >-",
    "o: {p, q: r}",
    "s: {\"t\":1}",
    "u: [\"v\" , w ]",
    "x: y, z] }",
    "a: \u{2028}",
    "b: *c",
    "d: &e f",
    "g: ?",
    "- ?x",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_here_is_read_alike(
        lines in prop::collection::vec((0..4_usize, prop::sample::select(PARTS)), 1..8),
        ends in any::<bool>(),
    ) {
        let lines: Vec<_> =
            lines.into_iter().map(|(indent, part)| format!("{}{part}", "  ".repeat(indent))).collect();
        is_read_alike(&format!("{}{}", lines.join("\n"), if ends { "\n" } else { "" }));
    }

    #[test]
    fn maps_of_maps_are_read_alike(
        lines in prop::collection::vec((0..3_usize, prop::sample::select(PARTS)), 0..4),
    ) {
        let lines = lines.into_iter().map(|(indent, part)| format!("{}{part}\n", "  ".repeat(indent + 1)));
        is_read_alike(&format!("first:\n{}last: 1\n", lines.collect::<String>()));
    }
}

/// Returns the texts of all YAML files that come with the source, those of the fuzzer too.
fn real_files() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> =
        ["tests", "examples", "runbooks"].iter().map(|it| root.join(it)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "yaml" || it == "yml") {
                found.extend(String::from_utf8(std::fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn most_real_files_are_read_here_and_all_alike() {
    let files = real_files();
    let read = files.iter().filter(|text| is_read_alike(text)).count();
    assert!(files.len() > 300 && read * 10 > files.len() * 8, "{read} of {}", files.len());
}

#[test]
fn changed_files_are_read_alike() {
    let mut dice = 0x2545_f491_4f6c_dd1d_usize;
    let mut below = |limit: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % limit.max(1)
    };
    let signs = [
        "", " ", "  ", "\n", "\n\n", ": ", ":", "- ", "-", "#", " # ", "\"", "'", "[", "]", "{", "}", ",",
        "|", ">", "\\", "é", "x", ".",
    ];
    let mut read = 0;
    for text in real_files().iter().filter(|text| text.len() < 3000) {
        for _ in 0..60 {
            let mut changed = text.clone();
            for _ in 0..=below(2) {
                let from = below(changed.len() + 1);
                let to = (from + below(4)).min(changed.len());
                if changed.is_char_boundary(from) && changed.is_char_boundary(to) {
                    changed.replace_range(from..to, signs[below(signs.len())]);
                }
            }
            read += usize::from(is_read_alike(&changed));
        }
    }
    assert!(read > 1000, "only {read} were read here");
}
