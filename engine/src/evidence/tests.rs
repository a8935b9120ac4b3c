use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::verify::verify_within;
use super::{Error, Verified, Written, verify, write};
use crate::journal::test_support::{TickClock, finished, header, person, started};
use crate::journal::{Header, Journal};
use crate::model::event::{AttemptResult, Decision, Done};
use crate::model::{EventKind, Outcome, RunId, RunOutcome, StepId, Stream};
use crate::plan::hex;
use crate::report::Owner;
use crate::report::human::Moment;
use crate::runs::{RunDir, StateDir, SystemProbe};

const RUN: &str = "01890000-0001-7000-8000-00000000bbbb";
const SOURCE: &str = "runbooks/restore.yaml";
const TEXT: &str = "runbook: restore\n";

/// A run in a state directory of its own.
struct Scene {
    dir: TempDir,
    run: RunDir,
    journal: Journal,
}

fn base() -> StepId {
    StepId::new("base").unwrap()
}

impl Scene {
    /// A run that has declared itself and printed something.
    async fn begun() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state"), &SystemProbe).unwrap();
        let id: RunId = RUN.parse().unwrap();
        let run = state.create_run(id).unwrap();
        let mut header = Header { run: id, ..header() };
        header.plan.sources.insert(SOURCE.into(), hex(&Sha256::digest(TEXT)));
        run.keep_source(SOURCE, TEXT).unwrap();
        let declared = EventKind::RunDeclared {
            plan_digest: header.plan.digest(),
            incident_at_ms: 900,
            by: person(),
            inputs: header.plan.inputs.clone(),
            engine: header.engine.clone(),
        };
        let journal = Journal::create(run.path(), header, TickClock::starting_at(1000)).unwrap();
        journal.append(vec![declared, started(1)]).await.unwrap();
        for n in 0..20 {
            run.output().line(&base(), 1, Stream::Stdout, &format!("line {n}")).unwrap();
        }
        Self { dir, run, journal }
    }

    async fn add(&self, events: Vec<EventKind>) {
        self.journal.append(events).await.unwrap();
    }

    async fn note(&self, text: &str) {
        let decision = Decision::Note { text: text.to_owned() };
        self.add(vec![EventKind::Decided { by: person(), decision }]).await;
    }

    /// Ends the run: sealed output, a note of a person, an advisory event in the midst.
    async fn end(&self) {
        let files = self.run.output().seal(&base(), 1).unwrap();
        let result = AttemptResult::Succeeded { done: Done::default() };
        self.add(vec![
            EventKind::OutputKept { step: base(), attempt: 1, files },
            EventKind::AttemptFinished { step: base(), attempt: 1, result },
            EventKind::StepFinished { step: base(), outcome: Outcome::Succeeded },
        ])
        .await;
        self.journal.advise(EventKind::Noted { step: None, text: "refused".into() });
        self.note("all is well").await;
        let outcome = RunOutcome::Succeeded;
        self.add(vec![
            EventKind::EndingBegan { outcome, reason: String::new(), undo: false },
            finished(outcome),
        ])
        .await;
    }

    async fn ended() -> Self {
        let scene = Self::begun().await;
        scene.end().await;
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str) -> (PathBuf, Written) {
        let path = self.path(name);
        let written = write(&self.run, Owner::Present, Moment(5_000), &path).unwrap();
        (path, written)
    }
}

/// Unpacks an archive, lets a forger change its members, and packs it again with new hashes.
fn forged(archive: &Path, change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> PathBuf {
    let mut members = members(archive);
    let root = members[0].0.split_once('/').unwrap().0.to_owned();
    members.retain(|(name, _)| !name.ends_with("SHA256SUMS"));
    change(&mut members);
    let sums: String = members
        .iter()
        .map(|(name, content)| format!("{}  {}\n", hex(&Sha256::digest(content)), &name[root.len() + 1..]))
        .collect();
    members.push((format!("{root}/SHA256SUMS"), sums.into_bytes()));
    let forged = archive.with_extension("forged");
    pack(
        &forged,
        members.iter().map(|(name, content)| (plain(name, content.len() as u64), content.as_slice())),
    );
    forged
}

fn members(archive: &Path) -> Vec<(String, Vec<u8>)> {
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).unwrap()));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    });
    entries.collect()
}

fn plain(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    // Written as it is: the library would refuse names that lead elsewhere.
    let bytes = name.as_bytes();
    header.as_ustar_mut().unwrap().name[..bytes.len()].copy_from_slice(bytes);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

fn pack<'a>(path: &Path, entries: impl Iterator<Item = (tar::Header, &'a [u8])>) {
    let compressed = GzBuilder::new().mtime(0).operating_system(255);
    let compressed: GzEncoder<File> = compressed.write(File::create(path).unwrap(), Compression::default());
    let mut tar = tar::Builder::new(compressed);
    entries.for_each(|(header, content)| tar.append(&header, content).unwrap());
    tar.into_inner().unwrap().finish().unwrap();
}

fn edit(
    name: &'static str,
    change: impl FnOnce(String) -> String,
) -> impl FnOnce(&mut Vec<(String, Vec<u8>)>) {
    move |members| {
        let (_, content) =
            members.iter_mut().find(|(found, _)| found.ends_with(name)).expect("a member of that name");
        let before = String::from_utf8(content.clone()).unwrap();
        let after = change(before.clone());
        assert_ne!(before, after, "the change changes nothing");
        *content = after.into_bytes();
    }
}

fn refusal(path: &Path, head: &str) -> String {
    let error = verify(path, Some(head)).expect_err("it was changed");
    format!("{} {error}", error.code())
}

#[tokio::test]
async fn evidence_of_an_ended_run_is_the_same_whenever_it_is_made_and_holds() {
    let scene = Scene::ended().await;
    let (first, written) = scene.write("one.tar.gz");
    let (second, _) = scene.write("two.tar.gz");
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    assert_eq!(hex(&Sha256::digest(fs::read(&first).unwrap())), written.sha256);
    assert_eq!(written.head, scene.journal.head().hash());
    let verified = verify(&first, Some(&written.head)).unwrap();
    let expected = Verified {
        run: scene.run.id(),
        runbook: "restore".into(),
        environment: "staging".into(),
        outcome: Some(RunOutcome::Succeeded),
        head: written.head.clone(),
        compared: true,
        essential_events: 8,
        advisory_events: 1,
        files: 2,
        not_in_chain: [].into(),
        missing: [].into(),
    };
    assert_eq!(verified, expected);
    assert!(!verify(&first, None).unwrap().compared);
    let names: Vec<String> = members(&first).into_iter().map(|(name, _)| name).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    lifeboat-evidence-0000bbbb/journal/header.json
    lifeboat-evidence-0000bbbb/journal/plan.json
    lifeboat-evidence-0000bbbb/journal/events.jsonl
    lifeboat-evidence-0000bbbb/README.md
    lifeboat-evidence-0000bbbb/verify.sh
    lifeboat-evidence-0000bbbb/evidence.json
    lifeboat-evidence-0000bbbb/environment.json
    lifeboat-evidence-0000bbbb/report.md
    lifeboat-evidence-0000bbbb/report.html
    lifeboat-evidence-0000bbbb/report.json
    lifeboat-evidence-0000bbbb/sources/runbooks/restore.yaml
    lifeboat-evidence-0000bbbb/output/base/1/stdout
    lifeboat-evidence-0000bbbb/SHA256SUMS
    ");
}

#[tokio::test]
async fn a_flipped_byte_is_found_wherever_it_is() {
    let scene = Scene::ended().await;
    let (path, written) = scene.write("a.tar.gz");
    let good = fs::read(&path).unwrap();
    let bad = scene.path("bad.tar.gz");
    let mut same = 0;
    let ends = (0..24).chain(good.len() - 24..good.len());
    for at in ends.chain((24..good.len() - 24).step_by(61)) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        fs::write(&bad, &bytes).unwrap();
        if verify(&bad, Some(&written.head)).is_ok() {
            // There is more than one way to pack the same bytes.
            assert!(members(&bad) == members(&path), "byte {at} of {}", good.len());
            same += 1;
        }
    }
    assert!(same <= 2, "{same} flips were not found");
    for length in [0, 5, good.len() / 2, good.len() - 1] {
        fs::write(&bad, &good[..length]).unwrap();
        assert!(verify(&bad, None).is_err(), "cut at {length}");
    }
    fs::write(&bad, [good.as_slice(), b"more"].concat()).unwrap();
    assert!(refusal(&bad, &written.head).contains("bytes behind the archive"));
}

type Forgery = Box<dyn FnOnce(&mut Vec<(String, Vec<u8>)>)>;

/// Forgeries of what the journal says, and what is said about each.
fn forgeries_of_events() -> Vec<(&'static str, Forgery)> {
    const EVENTS: &str = "journal/events.jsonl";
    let without = |line: usize| {
        edit(EVENTS, move |text: String| {
            let kept = text.lines().enumerate().filter(|(at, _)| *at != line);
            kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
        })
    };
    let swapped = |text: String| {
        let mut lines: Vec<&str> = text.lines().collect();
        lines.swap(3, 4);
        lines.join("\n") + "\n"
    };
    let other_word = |text: String| text.replace("all is well", "all is fine");
    vec![
        ("LB0387 .*event 3: event 3 is missing", Box::new(without(2))),
        ("LB0387 .*event 6: event 6 is missing", Box::new(without(5))),
        ("LB0387 .*event 4: event 4 is missing", Box::new(edit(EVENTS, swapped))),
        ("LB0387 .*event 7: its hash does not fit", Box::new(edit(EVENTS, other_word))),
    ]
}

/// Forgeries of one file after another, and what is said about each.
fn forgeries_of_files() -> Vec<(&'static str, Forgery)> {
    let replaced = |file: &'static str, old: &'static str, new: &'static str| -> Forgery {
        Box::new(edit(file, move |text: String| text.replace(old, new)))
    };
    let more = |file: &'static str, more: &'static str| -> Forgery {
        Box::new(edit(file, move |text: String| text + more))
    };
    vec![
        ("LB0387 .*event 1: its hash does not fit", replaced("plan.json", "Restore", "Rescue")),
        (
            "LB0387 .*output/base/1/stdout.*not what the run's journal says",
            replaced("base/1/stdout", "line 7", "line 8"),
        ),
        ("LB0387 .*sources/runbooks/restore.yaml.*not what the run's journal says", more(SOURCE, "# more\n")),
        ("LB0387 .*`report.md`: it is not what the events say", more("report.md", "x")),
        (
            "LB0387 .*`report.json`: it is not what the events say",
            replaced("report.json", "\"ada\"", "\"eve\""),
        ),
        ("LB0387 .*`verify.sh`: it is not what the events say", replaced("verify.sh", "fail \"", "echo \"")),
        (
            "LB0387 .*another version|LB0387 .*it says that 9.9 made it",
            replaced("evidence.json", env!("CARGO_PKG_VERSION"), "9.9"),
        ),
        (
            "LB0387 .*`evidence.json`",
            Box::new(|members| members.retain(|(name, _)| !name.ends_with("stdout"))),
        ),
    ]
}

#[tokio::test]
async fn a_forger_who_makes_all_hashes_anew_is_found_at_the_place() {
    let scene = Scene::ended().await;
    let (path, Written { head, .. }) = scene.write("a.tar.gz");
    for (expected, forgery) in forgeries_of_events().into_iter().chain(forgeries_of_files()) {
        let refusal = refusal(&forged(&path, forgery), &head);
        let pattern = regex::Regex::new(expected).unwrap();
        assert!(pattern.is_match(&refusal), "{expected}: {refusal}");
    }
}

#[tokio::test]
async fn the_end_cannot_be_cut_off_and_no_other_run_passes_for_this_one() {
    let (whole, cut) = (Scene::ended().await, Scene::begun().await);
    let (_, Written { head, .. }) = whole.write("a.tar.gz");
    let (path, written) = cut.write("a.tar.gz");
    assert!(!written.ended);
    let without = verify(&path, None).unwrap();
    assert_eq!((without.outcome, without.compared), (None, false), "consistent, and no proof");
    assert_eq!(without.not_in_chain, ["output/base/1/stdout".to_owned()].into(), "its attempt has not ended");
    assert!(refusal(&path, &head).starts_with("LB0388"), "{}", refusal(&path, &head));
    let readme = members(&path).into_iter().find(|(name, _)| name.ends_with("README.md")).unwrap().1;
    assert!(String::from_utf8(readme).unwrap().contains("had not ended"));
}

#[tokio::test]
async fn a_hostile_archive_is_refused_by_name_and_nothing_is_unpacked() {
    let scene = Scene::ended().await;
    let (path, Written { head, .. }) = scene.write("a.tar.gz");
    let root = members(&path)[0].0.split_once('/').unwrap().0.to_owned();
    let evil = scene.path("evil.tar.gz");
    let before = fs::read_dir(scene.dir.path()).unwrap().count() + 1;
    let mut link = plain(&format!("{root}/output/base/1/stdout"), 0);
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_link_name("/etc/passwd").unwrap();
    link.set_cksum();
    let mut long = plain("././@LongLink", 1 << 40);
    long.set_entry_type(tar::EntryType::GNULongName);
    long.set_cksum();
    let named = |name: &str| plain(name, 0);
    let cases = [
        (named("../../etc/x"), "no evidence has a file of that name"),
        (named("/etc/x"), "no evidence has a file of that name"),
        (named(&format!("{root}/output/../../x")), "no evidence has a file of that name"),
        (named(&format!("{root}/passwords.txt")), "no evidence has a file of that name"),
        (named(&format!("{root}/output/a\u{1b}[2J")), r"\u{1b}"),
        (link, "not a plain file"),
        (long, "not a plain file"),
        (plain(&format!("{root}/journal/plan.json"), 1 << 33), "larger than any such file"),
        (plain(&format!("{root}/journal/events.jsonl"), 0), "come before what they are about"),
    ];
    for (header, expected) in cases {
        pack(&evil, [(header, &b""[..])].into_iter());
        let refusal = refusal(&evil, &head);
        assert!(refusal.starts_with("LB0386") && refusal.contains(expected), "{expected}: {refusal}");
    }
    for (at, to) in [(1, 2), (2, 2), (2, 4), (0, 9), (1, 9), (5, 9), (11, 3)] {
        let twice = forged(&path, |members| members.insert(to, members[at].clone()));
        let refusal = refusal(&twice, &head);
        assert!(refusal.contains("there twice"), "{at} again at {to}: {refusal}");
        fs::remove_file(twice).unwrap();
    }
    assert_eq!(fs::read_dir(scene.dir.path()).unwrap().count(), before, "nothing was written");
}

/// What is said of a run twice is believed once by those who unpack the archive, and must not be by others.
#[tokio::test]
async fn events_that_a_forger_puts_before_the_real_ones_tell_nothing() {
    let scene = Scene::ended().await;
    let (path, Written { head, .. }) = scene.write("a.tar.gz");
    let other = Scene::begun().await;
    other.note("eve has approved").await;
    let (made_up, _) = other.write("b.tar.gz");
    let events = members(&made_up).remove(2);
    assert!(events.0.ends_with("events.jsonl"));
    let forged = forged(&path, |members| {
        let real = std::mem::replace(&mut members[2], events);
        members.push(real);
    });
    let refusal = refusal(&forged, &head);
    assert!(refusal.contains("events.jsonl`: the file is there twice"), "{refusal}");
}

#[tokio::test]
async fn a_small_file_that_unpacks_to_a_huge_one_ends_at_the_limit() {
    let scene = Scene::ended().await;
    let (path, Written { head, .. }) = scene.write("a.tar.gz");
    let zeros = vec![0; 6 << 20];
    let bomb = forged(&path, |members| {
        members.push((members[0].0.replace("journal/header.json", "output/z"), zeros))
    });
    assert!(fs::metadata(&bomb).unwrap().len() < 64 << 10);
    let error = verify_within(&bomb, Some(&head), 4 << 20).unwrap_err();
    assert!(matches!(error, Error::NoArchive { .. }), "{error}");
}

#[tokio::test]
async fn what_was_changed_in_the_run_itself_is_no_evidence() {
    let scene = Scene::ended().await;
    let log = scene.run.output().attempt_dir(&base(), 1).join("stdout");
    let good = fs::read_to_string(&log).unwrap();
    fs::write(&log, good.replace("line 3", "line 4")).unwrap();
    let refused =
        |scene: &Scene| write(&scene.run, Owner::Gone, Moment(0), &scene.path("x.tar.gz")).unwrap_err();
    assert!(matches!(refused(&scene), Error::NotKept { .. }));
    fs::remove_file(&log).unwrap();
    let (path, written) = scene.write("gap.tar.gz");
    assert_eq!(written.missing, ["output/base/1/stdout".to_owned()].into());
    assert_eq!(verify(&path, Some(&written.head)).unwrap().missing, written.missing);
    fs::write(&log, good).unwrap();
    let database = rusqlite::Connection::open(scene.run.path().join("journal.db")).unwrap();
    database.execute("UPDATE events SET body = replace(body, 'all is well', 'all is fine')", []).unwrap();
    assert!(refused(&scene).to_string().contains("damaged at event 7"), "{}", refused(&scene));
    assert!(!scene.path("x.tar.gz").exists(), "nothing is left of what was refused");
}

#[tokio::test]
async fn evidence_is_of_one_moment_while_the_run_goes_on() {
    let scene = Arc::new(Scene::begun().await);
    let writer = Arc::clone(&scene);
    let going = tokio::spawn(async move {
        for n in 0..25 {
            writer.note(&format!("note {n}")).await;
        }
    });
    let mut seen = Vec::new();
    while !going.is_finished() {
        let (path, written) = scene.write("a.tar.gz");
        let verified = verify(&path, Some(&written.head)).unwrap();
        seen.push(verified.essential_events);
        tokio::task::yield_now().await;
    }
    going.await.unwrap();
    assert!(seen.is_sorted() && seen.first() < seen.last(), "{seen:?}");
}

#[tokio::test]
async fn a_shell_and_sha256sum_find_the_same() {
    let scene = Scene::ended().await;
    let (path, Written { head, .. }) = scene.write("a.tar.gz");
    let run = |archive: &Path, head: &str| {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in members(archive) {
            let path = dir.path().join(name.split_once('/').unwrap().1);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().write_all(&content).unwrap();
        }
        let output =
            Command::new("bash").arg("verify.sh").arg(head).current_dir(dir.path()).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (good, said) = run(&path, &head);
    assert!(good && said.contains("9 events"), "{said}");
    let (good, said) = run(&path, &"0".repeat(64));
    assert!(!good && said.contains("the head is"), "{said}");
    let forged = forged(&path, edit("events.jsonl", |text| text.replace("all is well", "all is fine")));
    let (good, said) = run(&forged, &head);
    assert!(!good && said.contains("event 7"), "{said}");
}

/// `LIFEBOAT_TEST_LONG=1 cargo test --release -p lifeboat-engine --lib hundred_thousand -- --nocapture`
#[tokio::test]
async fn a_hundred_thousand_events_take_bounded_memory() {
    let count = if std::env::var_os("LIFEBOAT_TEST_LONG").is_some() { 100_000 } else { 2_000 };
    let scene = Scene::begun().await;
    for chunk in 0..count / 1000 {
        let note = |n: usize| Decision::Note { text: format!("note {chunk} {n}: {}", "x".repeat(200)) };
        scene.add((0..1000).map(|n| EventKind::Decided { by: person(), decision: note(n) }).collect()).await;
    }
    scene.end().await;
    let before = peak_kib();
    let begun = std::time::Instant::now();
    let (path, written) = scene.write("a.tar.gz");
    let (wrote, size) = (begun.elapsed(), fs::metadata(&path).unwrap().len());
    let begun = std::time::Instant::now();
    verify(&path, Some(&written.head)).unwrap();
    let grown = (peak_kib() - before) / 1024;
    println!(
        "{count} events: written in {wrote:?}, {size} bytes, verified in {:?}, {grown} MiB more",
        begun.elapsed()
    );
    assert!(grown < 512, "{grown} MiB");
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
