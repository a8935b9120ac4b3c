//! Whatever bytes a file holds, reading and compiling it ends, soon and without a panic. Replays `tests/fuzz`, and
//! changes the files of the corpus at random; `LIFEBOAT_FUZZ_SECONDS` says for how long beyond a short while.
//! `fuzz/` is the same for libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifeboat_engine::compile;
use lifeboat_engine::diagnostic::{Diagnostics, Source, Style, render, to_github, to_json};
use lifeboat_engine::expr::{Shape, holes, references};
use lifeboat_engine::project::Project;
use lifeboat_engine::spec::{EnvironmentSpec, RunbookSpec};
use lifeboat_engine::step::Registry;

#[path = "../src/cpu_time.rs"]
mod cpu_time;

use cpu_time::cpu_time;

/// How long it may compute. Generous, for slow machines and unoptimised builds.
const LONGEST: Duration = Duration::from_secs(20);

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

/// Does with some bytes all that `check` does with a file.
fn read(project: &Project, registry: &Registry, bytes: &[u8]) {
    let mut out = Diagnostics::new();
    let Some(source) = Source::from_bytes("x.yaml", bytes.to_vec(), &mut out) else { return };
    EnvironmentSpec::read(&source, Path::new("/p"), &mut Diagnostics::new());
    if let Some(spec) = RunbookSpec::read(&source, Path::new("/p"), &mut out) {
        compile::check(project, &spec, registry, &mut out);
    }
    out.sort();
    let shown = render(&out, Style::Plain);
    assert_eq!(shown.is_empty(), out.is_empty());
    to_json(&out);
    to_github(&out);
    // What the reader does not reach in so small a registry.
    let (found, refused) = holes(&source.text);
    assert!(found.iter().all(|hole| source.text.get(hole.range.clone()).is_some()));
    assert!(refused.iter().all(|refused| source.text.get(refused.range.clone()).is_some()));
    for shape in [Shape::Template, Shape::Expression] {
        let _ = references(&source.text, shape);
    }
}

fn timed(project: &Project, registry: &Registry, what: &str, bytes: &[u8]) {
    let begun = cpu_time();
    read(project, registry, bytes);
    let took = cpu_time() - begun;
    assert!(took < LONGEST, "{what}: {took:?}");
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn project() -> Project {
    Project::load(&tests().join("corpus/project")).unwrap()
}

#[test]
fn what_was_found_once_stays_mended() {
    let (project, registry) = (project(), Registry::new());
    for (name, bytes) in files(&tests().join("fuzz")) {
        timed(&project, &registry, &name, &bytes);
    }
}

/// A small generator of numbers, the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }
}

const WORDS: &[&str] = &[
    "{{ ",
    " }}",
    "{% if x %}",
    "{% endif %}",
    "{##",
    "##}",
    "'",
    "\"",
    "\\",
    "`",
    "$(",
    ")",
    "${",
    "}",
    "$((",
    "<<E\n",
    "&a ",
    "*a",
    "<<: ",
    "!t ",
    "? ",
    ": ",
    "- ",
    "| ",
    "> ",
    "\n",
    "\r\n",
    "\t",
    "\u{feff}",
    "\u{0}",
    "é",
    "🚒",
    "[",
    "]",
    "{",
    "}",
    ",",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "99999999999999999999",
    "steps.a.b",
    "inputs.",
    " is defined",
    " | default(1)",
    " and ",
    "not ",
    "==",
    "runbook: ",
    "steps:\n",
    "  - id: a\n",
    "    run: echo\n",
    "group: g\n",
    "needs: [a]\n",
    "for_each: ",
    "undo: ",
    "always:\n",
    "\\ud800",
    "\\x41",
    "\"\\\n",
    "~",
    "0o17",
    ".inf",
    "1e999",
];

/// Changes some bytes: removes, repeats, inserts words, splices another file in.
fn change(dice: &mut Dice, bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)]) {
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(40)).min(bytes.len());
        match dice.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let piece = bytes[at..end].repeat(1 + dice.below(4));
                bytes.splice(at..at, piece);
            }
            2 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = u8::try_from(dice.below(256)).unwrap()),
            3 => {
                let other = &others[dice.below(others.len())].1;
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(120)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].bytes())),
        }
    }
    bytes.truncate(64 * 1024);
}

#[test]
fn no_change_of_a_file_makes_the_reader_fail() {
    let (project, registry) = (project(), Registry::new());
    let seconds = std::env::var("LIFEBOAT_FUZZ_SECONDS").ok().and_then(|text| text.parse::<u64>().ok());
    let seed =
        std::env::var("LIFEBOAT_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x1f_eb0a);
    let mut all = files(&tests().join("corpus/valid"));
    all.extend(files(&tests().join("corpus/invalid")));
    all.extend(files(&tests().join("corpus/project/environments")));
    all.retain(|(_, bytes)| bytes.len() < 8 * 1024);
    let (mut dice, begun, mut tried) = (Dice(seed), Instant::now(), 0_u64);
    while tried < 300 || begun.elapsed() < Duration::from_secs(seconds.unwrap_or(0)) {
        let mut bytes = all[dice.below(all.len())].1.clone();
        change(&mut dice, &mut bytes, &all);
        let kept = bytes.clone();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            timed(&project, &registry, "a change", &kept)
        }));
        if ended.is_err() {
            let path = std::env::temp_dir().join(format!("lifeboat-fuzz-{tried}.yaml"));
            fs::write(&path, &bytes).unwrap();
            panic!("keep it in tests/fuzz: {}", path.display());
        }
        tried += 1;
    }
    println!("{tried} files in {:?}", begun.elapsed());
}
