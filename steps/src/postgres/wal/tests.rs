use std::collections::HashSet;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::postgres::codes;
use crate::store::{self, Key, Meter, Owner, Store};
use lifeboat_engine::model::ids::{RunId, StepId};

const MIB: u64 = 1 << 20;
const SYSTEM: SystemId = SystemId(7_300_000_000_000_000_001);

fn size() -> SegmentSize {
    SegmentSize::new(MIB).expect("a valid size")
}

fn lsn(text: &str) -> Lsn {
    text.parse().expect("a position")
}

/// A segment as a server of [`SYSTEM`] writes it.
fn segment(name: &str, fill: u8) -> Vec<u8> {
    segment_of(name, SYSTEM, fill)
}

fn segment_of(name: &str, system: SystemId, fill: u8) -> Vec<u8> {
    let parsed = Segment::parse(name, size()).expect("a name");
    let mut bytes = vec![fill; MIB as usize];
    bytes[..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[4..8].copy_from_slice(&parsed.timeline.to_ne_bytes());
    bytes[8..16].copy_from_slice(&parsed.start(size()).0.to_ne_bytes());
    bytes[24..32].copy_from_slice(&system.0.to_ne_bytes());
    bytes[32..36].copy_from_slice(&(MIB as u32).to_ne_bytes());
    bytes
}

/// A data directory to archive from and a store to archive into.
struct Bench {
    dir: TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for sub in ["store", "data/pg_wal", "data/global"] {
            std::fs::create_dir_all(dir.path().join(sub)).expect("makes");
        }
        std::fs::write(dir.path().join("data/global/pg_control"), SYSTEM.0.to_ne_bytes()).expect("writes");
        let store = Store::open_url(&format!("dir://{}/store", dir.path().display())).expect("opens");
        let bench = Self { dir, store };
        bench.configure("zstd");
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, compression: &str) {
        let config = serde_json::json!({"store": format!("dir://{}", self.store.work_dir().display()), "compression": compression});
        std::fs::write(self.path("wal.json"), config.to_string()).expect("writes");
    }

    fn put(&self, name: &str, content: &[u8]) -> WalExit {
        let path = self.path("data/pg_wal").join(name);
        std::fs::write(&path, content).expect("writes");
        put_main(&self.path("wal.json"), &path, name)
    }

    fn must_put(&self, name: &str) {
        assert_eq!(self.put(name, &segment(name, 7)), WalExit::silent(0));
    }

    fn stored(&self, name: &str) -> std::path::PathBuf {
        self.path(&format!("store/wal/{SYSTEM}/{name}"))
    }

    /// Publishes a base backup, so that there is a witness.
    fn source(&self) -> WalSource {
        let owner = Owner { run: RunId::generate(), step: StepId::new("base").expect("an id") };
        let partial = self.store.begin(store::BackupKind::PostgresBase, "one", &owner).expect("begins");
        std::fs::write(partial.path().join("base.tar"), b"x").expect("writes");
        let digest = store::digest_of(&b"x"[..], &Meter::silent()).expect("reads");
        let entry = store::ObjectEntry { name: "base.tar".into(), size: digest.size, sha256: digest.sha256 };
        let now = jiff::Timestamp::now();
        partial.publish((now, now), vec![entry], serde_json::Value::Null).expect("publishes");
        WalSource {
            store: self.store.clone(),
            system_id: SYSTEM,
            segment_size: size(),
            backup: "one".into(),
            proven: None,
            socket: self.path("s"),
            owner: None,
            first: None,
        }
    }

    fn get(&self, server: &WalServer, name: &str) -> i32 {
        get_main(server.socket(), name, &self.path("data/pg_wal/RECOVERYXLOG")).code
    }
}

const NAMES: [&str; 4] = [
    "000000010000000000000003",
    "000000010000000000000004",
    "000000010000000000000005",
    "000000010000000000000006",
];

#[test]
fn positions_are_written_as_postgres_writes_them() {
    assert_eq!(lsn("0/3000028").0, 0x300_0028);
    assert_eq!(lsn("1A/0").to_string(), "1A/0");
    for bad in ["", "/", "0", "0/", "/0", "0/123456789", "g/0", "0/+1", " 0/1"] {
        assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
    }
}

#[test]
fn names_follow_the_segment_size() {
    let default = SegmentSize::DEFAULT;
    let parse = |name: &str, size| Segment::parse(name, size).map(|segment| segment.number).ok();
    assert_eq!(parse("000000010000000100000000", default), Some(256));
    assert_eq!(parse("000000010000000000000100", default), None, "there are 256 to a group");
    assert_eq!(parse("000000010000000100000000", size()), Some(4096));
    let last = Segment { timeline: 1, number: 255 };
    assert_eq!(last.next().name(default), "000000010000000100000000");
    assert_eq!(Segment::at(1, lsn("0/3000000"), default).number, 3);
    assert_eq!(Segment::before(1, lsn("0/3000000"), default).number, 2);
    for bad in [0, MIB + 1, MIB / 2, 1 << 31] {
        assert!(SegmentSize::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn files_are_told_apart_by_their_names() {
    let parse = |name: &str| WalName::parse(name).ok();
    assert_eq!(parse("000000010000000000000003"), Some(WalName::Segment));
    assert_eq!(parse("000000010000000000000003.partial"), Some(WalName::Partial));
    assert_eq!(parse("000000010000000000000003.00000028.backup"), Some(WalName::BackupLabel));
    assert_eq!(parse("0000000A.history"), Some(WalName::History(10)));
    for bad in [
        "",
        "00000001000000000000000a",
        "00000001000000000000003",
        "000000000000000000000003",
        "../000000010000000000003",
        "000000010000000000000003.zst",
        "00000000.history",
        "1.history",
        "RECOVERYXLOG",
        "000000010000000000000003.28.backup",
    ] {
        assert!(WalName::parse(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn names_and_numbers_are_each_others_inverse(
        timeline in 1_u32..,
        number in 0_u64..1 << 32,
        shift in 20_u32..=30,
    ) {
        let size = SegmentSize::new(1 << shift).expect("a valid size");
        let segment = Segment { timeline, number: number % (u64::MAX / size.bytes()) };
        prop_assert_eq!(Segment::parse(&segment.name(size), size).expect("its own name"), segment);
    }

    #[test]
    fn no_history_makes_the_parser_fall_over(text in ".{0,200}", timeline in 1_u32..) {
        History::parse(timeline, &text).ok();
    }

    /// Against a slow oracle: the proven range ends before the first hole.
    #[test]
    fn continuity_ends_before_the_first_hole(present in proptest::collection::hash_set(3_u64..20, 0..17), start in 3_u64..20) {
        let mut archive = Archive::default();
        for number in &present {
            archive.add(&format!("{}.zst", Segment { timeline: 1, number: *number }.name(size())), 10);
        }
        let found = archive.continuity(start, &History::root(1), size());
        let run = (start..).take_while(|number| present.contains(number)).count() as u64;
        let end = present.iter().copied().max().unwrap_or(0);
        let holes: HashSet<_> = (start..end).filter(|number| !present.contains(number)).collect();
        prop_assert_eq!(found.count(), run);
        prop_assert_eq!(found.missing_count, holes.len() as u64);
        prop_assert_eq!(found.stored_bytes, run * 10);
    }
}

#[test]
fn histories_say_which_log_belongs_to_them() {
    let text = "1\t0/3500000\tno recovery target specified\n\n# a remark\n2\t0/5000000\tbefore 2026-11-21\n";
    let history = History::parse(3, text).expect("is valid");
    assert_eq!(history.timelines(), [1, 2, 3]);
    assert!(history.contains(1, lsn("0/3500000")) && !history.contains(1, lsn("0/3500001")));
    assert!(history.contains(2, lsn("0/4000000")) && history.contains(3, lsn("F/0")));
    assert!(!history.contains(4, lsn("0/1")));
    let of = |number| history.timeline_of(number, SegmentSize::DEFAULT);
    assert_eq!(
        [of(2), of(3), of(4), of(5)],
        [1, 2, 2, 3],
        "a timeline begins with the segment of its switch"
    );
    for bad in ["", "x\t0/1", "3\t0/1", "2\t0/5\n1\t0/6", "1\t0/5\n2\t0/4", "0\t0/1", "1"] {
        assert_eq!(History::parse(3, bad).expect_err(bad).code, codes::LB1204);
    }
}

#[test]
fn a_walk_changes_timelines_where_the_history_does() {
    let history = History::parse(2, "1\t0/500000\tx").expect("is valid");
    let mut archive = Archive::default();
    let (one, two) = (|number| Segment { timeline: 1, number }, |number| Segment { timeline: 2, number });
    for segment in [one(3), one(4), two(5), two(6), two(8)] {
        archive.add(&segment.name(size()), 1);
    }
    // The old primary went on for a while: not part of this history.
    archive.add(&one(5).name(size()), 1);
    archive.add(&one(7).name(size()), 1);
    let found = archive.continuity(3, &history, size());
    assert_eq!(found.end(), Some(two(6)));
    assert_eq!(found.missing, [two(7).name(size())]);
    assert!(found.contains(one(4)) && !found.contains(one(5)) && found.contains(two(5)));
    assert_eq!(archive.timelines().into_iter().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn listings_know_what_is_no_segment() {
    let mut archive = Archive::default();
    archive.add("000000010000000000000003.partial.zst", 5);
    archive.add("000000010000000000000004.zst", 0);
    archive.add("000000010000000000000005.00000028.backup", 5);
    archive.add("notes.txt", 5);
    archive.add("00000002.history", 5);
    assert!(archive.is_empty());
    assert_eq!(archive.unknown, ["000000010000000000000004.zst", "notes.txt"]);
    assert_eq!(archive.timelines().into_iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn put_stores_once_and_refuses_other_content() {
    for compression in ["zstd", "none"] {
        let bench = Bench::new();
        bench.configure(compression);
        bench.must_put(NAMES[0]);
        bench.must_put(NAMES[0]);
        bench.configure("none");
        bench.must_put(NAMES[0]);
        let other = bench.put(NAMES[0], &segment(NAMES[0], 8));
        assert_eq!(other.code, 1);
        assert!(other.message.contains(NAMES[0]) && other.message.contains("LB1203"), "{}", other.message);
        let left = std::fs::read_dir(bench.path(&format!("store/wal/{SYSTEM}"))).expect("lists").count();
        assert_eq!(left, 1, "{compression}");
    }
}

#[test]
fn put_refuses_what_is_no_segment_of_that_name() {
    let bench = Bench::new();
    let name = NAMES[0];
    let good = segment(name, 7);
    let mut no_magic = good.clone();
    no_magic[1] = 0;
    let mut short_header = good.clone();
    short_header[2] = 0;
    for bad in [&good[..good.len() - 1], &[], &no_magic, &short_header, &segment(NAMES[1], 7)] {
        let exit = bench.put(name, bad);
        assert_eq!(exit.code, 1);
        assert!(exit.message.contains("LB1202"), "{}", exit.message);
    }
    assert_eq!(bench.put("strange", &good).code, 1);
    assert!(!bench.stored(&format!("{name}.zst")).exists());
}

#[test]
fn put_takes_histories_and_backup_labels_of_the_cluster_it_runs_in() {
    let bench = Bench::new();
    assert_eq!(bench.put("00000002.history", b"1\t0/3000000\tx\n").code, 0);
    assert_eq!(bench.put("00000002.history", b"1\t0/4000000\tx\n").code, 1);
    assert_eq!(bench.put("00000003.history", b"nonsense").code, 1);
    let label = "000000010000000000000003.00000028.backup";
    assert_eq!(bench.put(label, b"START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\n").code, 0);
    assert!(bench.stored("00000002.history").exists() && bench.stored(label).exists());
    std::fs::remove_file(bench.path("data/global/pg_control")).expect("removes");
    assert_eq!(bench.put("00000004.history", b"1\t0/3000000\tx\n").code, 1);
}

#[test]
fn put_says_what_is_wrong_with_its_configuration() {
    let bench = Bench::new();
    let path = bench.path("data/pg_wal").join(NAMES[0]);
    std::fs::write(&path, segment(NAMES[0], 7)).expect("writes");
    for bad in [
        "",
        "{}",
        r#"{"store": "dir:///x", "other": 1}"#,
        r#"{"store": "dir:///x", "compression": "x"}"#,
        r#"{"store": "dir:///x", "encryption": "AES256"}"#,
        r#"{"store": "s3://x", "encryption": "yes"}"#,
        r#"{"store": "s3://x", "kms_key": "alias/x"}"#,
        r#"{"store": "s3://x", "encryption": "AES256", "kms_key": "alias/x"}"#,
    ] {
        std::fs::write(bench.path("wal.json"), bad).expect("writes");
        let exit = put_main(&bench.path("wal.json"), &path, NAMES[0]);
        assert!(exit.code == 1 && exit.message.contains("LB1205"), "{}", exit.message);
    }
    let exit = put_main(Path::new("/no/such/file"), &path, NAMES[0]);
    assert!(exit.code == 1 && exit.message.contains("/no/such/file"), "{}", exit.message);
}

#[test]
fn two_archivers_at_once_leave_one_whole_segment() {
    let bench = Bench::new();
    let name = NAMES[0];
    let path = bench.path("data/pg_wal").join(name);
    std::fs::write(&path, segment(name, 7)).expect("writes");
    let config = bench.path("wal.json");
    let exits: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| put_main(&config, &path, name))).collect();
        threads.into_iter().map(|thread| thread.join().expect("ends")).collect()
    });
    assert!(exits.iter().all(|exit| exit.code == 0), "{exits:?}");
    let server = WalServer::start(bench.source()).expect("starts");
    assert_eq!(bench.get(&server, name), 0);
}

#[test]
fn get_delivers_what_was_put_and_proves_absences() {
    let bench = Bench::new();
    for name in &NAMES[..3] {
        bench.must_put(name);
    }
    bench.put("00000002.history", b"1\t0/3000000\tx\n");
    let server = WalServer::start(bench.source()).expect("starts");
    for name in &NAMES[..3] {
        assert_eq!(bench.get(&server, name), 0, "{name}");
        let delivered = std::fs::read(bench.path("data/pg_wal/RECOVERYXLOG")).expect("reads");
        assert!(delivered == segment(name, 7), "{name}");
    }
    assert_eq!(bench.get(&server, NAMES[3]), 1);
    assert_eq!(bench.get(&server, "00000002.history"), 0);
    assert_eq!(bench.get(&server, "00000003.history"), 1);
    assert_eq!(bench.get(&server, "000000010000000000000003.partial"), 255);
    assert_eq!(bench.get(&server, "nonsense"), 255);
    let socket = server.socket().to_owned();
    let requests = server.shutdown();
    let answers: Vec<_> = requests.iter().map(|request| (request.name.as_str(), &request.answer)).collect();
    assert_eq!(answers[0], (NAMES[0], &Answered::Delivered(Origin::Direct)));
    assert_eq!(answers[3], (NAMES[3], &Answered::Absent));
    assert!(matches!(answers[7].1, Answered::Failed(_)));
    assert_eq!(requests[0].bytes, MIB);
    assert!(!socket.exists());
    assert_eq!(get_main(&socket, NAMES[0], &bench.path("x")).code, 255, "nobody answers any more");
}

#[test]
fn an_absence_is_cached_no_longer_than_it_lasts() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    let server = WalServer::start(bench.source()).expect("starts");
    assert_eq!((bench.get(&server, NAMES[0]), bench.get(&server, NAMES[1])), (0, 1));
    bench.must_put(NAMES[1]);
    assert_eq!(bench.get(&server, NAMES[1]), 0);
}

#[test]
fn get_never_takes_damage_for_absence() {
    let bench = Bench::new();
    for name in NAMES {
        bench.must_put(name);
    }
    let stored = |name: &str| bench.stored(&format!("{name}.zst"));
    let whole = std::fs::read(stored(NAMES[0])).expect("reads");
    std::fs::write(stored(NAMES[0]), &whole[..whole.len() - 1]).expect("truncates");
    let foreign = segment_of(NAMES[1], SystemId(5), 7);
    std::fs::write(stored(NAMES[1]), zstd::encode_all(&foreign[..], 1).expect("compresses")).expect("writes");
    std::fs::copy(stored(NAMES[3]), stored(NAMES[2])).expect("copies");
    let server = WalServer::start(bench.source()).expect("starts");
    for name in &NAMES[..3] {
        assert_eq!(bench.get(&server, name), 255, "{name}");
    }
    assert_eq!(bench.get(&server, NAMES[3]), 0);
    let left: Vec<_> = std::fs::read_dir(bench.path("data/pg_wal")).expect("lists").flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".lifeboat")), "{left:?}");
}

#[test]
fn an_unmounted_store_is_not_the_end_of_the_log() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    let server = WalServer::start(bench.source()).expect("starts");
    std::fs::rename(bench.path("store"), bench.path("away")).expect("renames");
    assert_eq!(bench.get(&server, NAMES[3]), 255);
    std::fs::create_dir(bench.path("store")).expect("makes");
    assert_eq!(bench.get(&server, NAMES[3]), 255, "an empty mount point proves nothing");
    std::fs::remove_dir(bench.path("store")).expect("removes");
    std::fs::rename(bench.path("away"), bench.path("store")).expect("renames");
    assert_eq!((bench.get(&server, NAMES[0]), bench.get(&server, NAMES[3])), (0, 1));
}

#[test]
fn a_segment_that_was_proven_and_is_gone_is_a_fault() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    bench.must_put(NAMES[1]);
    let archive = Archive::list(&bench.store, SYSTEM).expect("lists");
    let proven = archive.continuity(3, &History::root(1), size());
    assert_eq!(proven.count(), 2);
    let server = WalServer::start(WalSource { proven: Some(proven), ..bench.source() }).expect("starts");
    std::fs::remove_file(bench.stored(&format!("{}.zst", NAMES[1]))).expect("removes");
    assert_eq!((bench.get(&server, NAMES[1]), bench.get(&server, NAMES[2])), (255, 1));
}

#[test]
fn a_destination_that_cannot_be_written_is_a_fault() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    let server = WalServer::start(bench.source()).expect("starts");
    assert_eq!(get_main(server.socket(), NAMES[0], &bench.path("no/such/dir/x")).code, 255);
}

#[test]
fn a_helper_that_ends_late_leaves_its_place_to_the_next_one() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    let source = bench.source();
    let first = WalServer::start(source.clone()).expect("starts");
    let second = WalServer::start(source).expect("starts in its place");
    assert!(first.shutdown().is_empty());
    assert_eq!(bench.get(&second, NAMES[0]), 0, "it is still reached");
    let socket = second.socket().to_owned();
    drop(second);
    assert!(!socket.exists());
}

#[test]
fn the_command_survives_the_shell() {
    let bench = Bench::new();
    let mut source = bench.source();
    source.socket = bench.path("it's 100%");
    let server = WalServer::start(source).expect("starts");
    let command = server.restore_command(Path::new("/a b/lifeboat"));
    assert!(command.starts_with("'/a b/lifeboat' wal get --socket '"), "{command}");
    assert!(command.ends_with(r"it'\''s 100%%' %f %p"), "{command}");
}

#[test]
fn a_helper_without_its_backup_does_not_start() {
    let bench = Bench::new();
    let source = WalSource { backup: "other".into(), ..bench.source() };
    assert_eq!(WalServer::start(source).expect_err("no witness").code, store::codes::LB1104);
}

#[test]
fn systems_are_listed_by_number() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    bench.store.put(&Key::new("wal/notes/x").expect("a key"), b"").expect("writes");
    assert_eq!(systems(&bench.store).expect("lists"), [SYSTEM]);
}

/// The files that were read ahead, by name.
fn read_ahead(bench: &Bench) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(bench.path("wal")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn until_read_ahead(server: &WalServer, count: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.read_ahead() < count {
        assert!(std::time::Instant::now() < deadline, "{} of {count}", server.read_ahead());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn start_with(bench: &Bench, first: &str) -> WalServer {
    let first = Segment::parse(first, size()).expect("a name");
    WalServer::start(WalSource { first: Some(first), ..bench.source() }).expect("starts")
}

fn origins(requests: &[Request]) -> Vec<Origin> {
    let origin = |request: &Request| match &request.answer {
        Answered::Delivered(origin) => *origin,
        other => panic!("{}: {other:?}", request.name),
    };
    requests.iter().map(origin).collect()
}

#[test]
fn segments_are_read_ahead_and_handed_over_without_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    for name in NAMES {
        bench.must_put(name);
    }
    let server = start_with(&bench, NAMES[0]);
    until_read_ahead(&server, NAMES.len());
    for name in NAMES {
        let ahead = read_ahead(&bench).remove(0);
        let inode = std::fs::metadata(&ahead).expect("is there").ino();
        assert_eq!(bench.get(&server, name), 0);
        let delivered = bench.path("data/pg_wal/RECOVERYXLOG");
        assert_eq!(std::fs::metadata(&delivered).expect("is there").ino(), inode, "the very file");
        assert!(std::fs::read(&delivered).expect("reads") == segment(name, 7), "{name}");
    }
    assert_eq!(read_ahead(&bench), Vec::<std::path::PathBuf>::new());
    let requests = server.shutdown();
    assert_eq!(origins(&requests), [Origin::Queue; 4]);
    assert!(requests.iter().all(|request| request.bytes == MIB));
    assert!(!bench.path("wal").exists());
}

#[test]
fn a_segment_that_rots_after_it_was_read_ahead_is_read_again() {
    let damages: [fn(&Path); 4] = [
        |path| drop(std::fs::OpenOptions::new().write(true).open(path).expect("opens").set_len(MIB - 1)),
        |path| {
            let mut bytes = std::fs::read(path).expect("reads");
            bytes[MIB as usize / 2] ^= 1;
            std::fs::write(path, bytes).expect("writes");
        },
        |path| std::fs::remove_file(path).expect("removes"),
        |path| {
            std::fs::remove_file(path).expect("removes");
            std::os::unix::fs::symlink("/etc/passwd", path).expect("links");
        },
    ];
    for damage in damages {
        let bench = Bench::new();
        bench.must_put(NAMES[0]);
        let server = start_with(&bench, NAMES[0]);
        until_read_ahead(&server, 1);
        damage(&read_ahead(&bench)[0]);
        assert_eq!(bench.get(&server, NAMES[0]), 0);
        let delivered = std::fs::read(bench.path("data/pg_wal/RECOVERYXLOG")).expect("reads");
        assert!(delivered == segment(NAMES[0], 7), "what the archive holds");
        assert_eq!(origins(&server.shutdown()), [Origin::Direct]);
    }
}

#[test]
fn nothing_is_served_across_a_change_of_timeline() {
    let bench = Bench::new();
    for name in NAMES {
        bench.must_put(name);
    }
    let other = NAMES[1].replacen("00000001", "00000002", 1);
    bench.must_put(&other);
    let server = start_with(&bench, NAMES[0]);
    until_read_ahead(&server, NAMES.len());
    assert_eq!((bench.get(&server, NAMES[0]), bench.get(&server, &other)), (0, 0));
    let delivered = std::fs::read(bench.path("data/pg_wal/RECOVERYXLOG")).expect("reads");
    assert!(delivered == segment(&other, 7), "of the new timeline");
    assert!(read_ahead(&bench).iter().all(|path| !path.to_string_lossy().contains("/00000001")));
    assert_eq!(origins(&server.shutdown()), [Origin::Queue, Origin::Direct]);
}

#[test]
fn no_more_is_read_ahead_than_there_is_room_for() {
    const MOST: usize = 32;
    let bench = Bench::new();
    let name = |number| Segment { timeline: 1, number }.name(size());
    for number in 3..43 {
        bench.must_put(&name(number));
    }
    let server = start_with(&bench, &name(3));
    until_read_ahead(&server, MOST);
    for number in 3..43 {
        assert!(read_ahead(&bench).len() <= MOST, "{}", read_ahead(&bench).len());
        assert_eq!(bench.get(&server, &name(number)), 0);
    }
    assert_eq!(server.shutdown().len(), 40);
}

#[test]
fn what_an_earlier_recovery_left_is_never_served() {
    let bench = Bench::new();
    bench.must_put(NAMES[0]);
    std::fs::create_dir(bench.path("wal")).expect("makes");
    std::fs::write(bench.path("wal").join(format!("{}.0", NAMES[0])), segment(NAMES[0], 9)).expect("writes");
    let server = start_with(&bench, NAMES[0]);
    assert_eq!(bench.get(&server, NAMES[0]), 0);
    let delivered = std::fs::read(bench.path("data/pg_wal/RECOVERYXLOG")).expect("reads");
    assert!(delivered == segment(NAMES[0], 7));
}
