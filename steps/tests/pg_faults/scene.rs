//! The source that all cases restore, and one case.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use jiff::Timestamp;
use lifeboat_engine::code::Code;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::plan::hex;
use lifeboat_engine::resource::{self, Postgres, System};
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use lifeboat_steps::postgres::pidfile::PidFile;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::archive::{Archive, wal_program};
use crate::support::bucket::{Bucket, Versions, next_second};
use crate::support::postgres::{Cluster, Options, Place, free_port, succeed, wait_until};
use crate::support::rig::Rig;

/// What is known of a source whose server is gone: its store, and every commit.
pub(crate) struct Original {
    store: PathBuf,
    /// The same, after the source was promoted to timeline 2 and has committed one row more there.
    switched: PathBuf,
    /// The label of the backup before row 2.
    pub(crate) first: String,
    /// The label of the backup between rows 4 and 5.
    pub(crate) second: String,
    pub(crate) system: String,
    /// By row: a moment after its commit and before that of the next row.
    pub(crate) moments: BTreeMap<u32, Timestamp>,
    /// By row: when it was committed.
    pub(crate) commits: BTreeMap<u32, Timestamp>,
    _remover: Remover,
}

/// The last row.
pub(crate) const LAST: u32 = 11;
/// The first row of timeline 2; one more follows in the next segment.
pub(crate) const SWITCHED: u32 = 12;
/// Rows that were committed one right after the other, within a second as a rule.
pub(crate) const BURST: std::ops::RangeInclusive<u32> = 6..=10;

/// Returns the source; the first call makes it.
pub(crate) fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        // On a thread of its own, for it waits for steps and may be called by one that does.
        std::thread::spawn(make).join().expect("the source is made")
    })
}

impl Original {
    /// Returns the names of all segments of the archive that follow the first backup, in order.
    pub(crate) fn segments(&self) -> Vec<String> {
        let names = names(&self.store.join("wal").join(&self.system)).into_iter();
        let names = names.filter(|name| name.len() == "0000000100000000000000AA.zst".len());
        let marker =
            fs::read(self.store.join("base").join(&self.first).join("lifeboat.json")).expect("a marker");
        let marker: Value = serde_json::from_slice(&marker).expect("JSON");
        let start = marker["details"]["wal_start_segment"].as_str().expect("text").to_owned();
        names.map(|name| name[..24].to_owned()).filter(|name| *name >= start).collect()
    }
}

/// Removes a directory when the test program ends, in whatever way: statics are never dropped.
struct Remover {
    _child: Child,
}

impl Remover {
    fn of(dir: &Path) -> Self {
        let script = "trap '' INT TERM HUP; read -r nothing; rm -rf -- \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(dir).stdin(Stdio::piped());
        Self { _child: command.spawn().expect("a shell") }
    }
}

fn make() -> Original {
    use_client_program(wal_program().to_path_buf());
    let archive = Archive::make();
    let settings = vec!["track_commit_timestamp = on".to_owned()];
    let source = archive.cluster(Options { settings, ..Options::default() });
    let rig = Rig::drill().resource("db", source.system()).resource("backups", archive.system());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let back_up = |step: &str| {
        let with = json!({"cluster": "db", "store": "backups"});
        let done = runtime.block_on(rig.run_as(step, "postgres.base_backup", with)).expect("is backed up");
        done.outputs["label"].as_str().expect("a label").to_owned()
    };
    source.sql("create table ledger (id int primary key, note text)");
    let mut moments = BTreeMap::from([(1, commit(&source, 1))]);
    let first = back_up("first");
    for row in 2..=4 {
        moments.insert(row, commit(&source, row));
        source.sql("select pg_switch_wal()");
    }
    // Labels of one run are told apart by the second.
    next_second();
    let second = back_up("second");
    moments.insert(5, commit(&source, 5));
    source.sql("select pg_switch_wal()");
    commit_burst(&source);
    moments.insert(*BURST.end(), now(&source));
    source.sql("select pg_switch_wal()");
    moments.insert(LAST, commit(&source, LAST));
    source.archive_wal();
    let system = source.sql("select system_identifier from pg_control_system()");
    let dir = tempfile::Builder::new().prefix("lb-original-").tempdir().expect("a directory").keep();
    let (store, switched) = (dir.join("store"), dir.join("switched"));
    copy(&archive.root, &store);
    promote(&source);
    for row in [SWITCHED, SWITCHED + 1] {
        moments.insert(row, commit(&source, row));
        source.archive_wal();
    }
    let commits = commits(&source);
    copy(&archive.root, &switched);
    Original { store, switched, first, second, system, moments, commits, _remover: Remover::of(&dir) }
}

/// Puts the source on a timeline of its own.
fn promote(source: &Cluster) {
    source.stop("fast");
    let signal = source.data_dir.join("standby.signal");
    fs::write(&signal, "").expect("writes");
    source.place().own(&signal);
    source.start_server();
    assert_eq!(source.sql("select pg_promote()"), "t");
    wait_until("the timeline is archived", || {
        source.sql("select count(*) from pg_ls_archive_statusdir() where name = '00000002.history.done'")
            == "1"
    });
}

/// Commits a row and returns a moment after that and before any later commit.
fn commit(source: &Cluster, row: u32) -> Timestamp {
    source.sql(&format!("insert into ledger values ({row}, repeat('note {row} ', 200))"));
    now(source)
}

/// Each in a transaction of its own, and all within a second unless this process or the server is held up.
fn commit_burst(source: &Cluster) {
    let insert = |row| format!("begin; insert into ledger values ({row}, 'in a burst'); commit;");
    let sql: String = BURST.map(insert).collect();
    next_second();
    source.sql(&sql);
}

fn now(source: &Cluster) -> Timestamp {
    let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    source.sql(sql).parse().expect("a time")
}

fn commits(source: &Cluster) -> BTreeMap<u32, Timestamp> {
    let time = "pg_xact_commit_timestamp(xmin) at time zone 'UTC'";
    let sql = format!("select id || '=' || to_char({time}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from ledger");
    let lines = source.sql(&sql);
    let parse = |line: &str| {
        let (row, time) = line.split_once('=').expect("written like this");
        (row.parse().expect("a number"), time.parse().expect("a time"))
    };
    lines.lines().map(parse).collect()
}

/// Where the store is in the bucket.
const PREFIX: &str = "team/pg";

/// Returns the bucket with the store; the first call fills it.
fn bucket() -> &'static Bucket {
    static BUCKET: OnceLock<Bucket> = OnceLock::new();
    BUCKET.get_or_init(|| {
        let bucket = Bucket::make(Versions::None);
        let store = &original().store;
        for (path, meta) in &Tree::of(store).0 {
            if !meta.3.is_empty() {
                let key = path.strip_prefix(store).expect("is below").to_str().expect("UTF-8");
                bucket.put(&format!("{PREFIX}/{key}"), fs::read(path).expect("reads"));
            }
        }
        bucket
    })
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs").success());
}

/// A copy of the store, and a place to restore to, at which something else stands.
pub(crate) struct Case {
    pub(crate) original: &'static Original,
    pub(crate) rig: Rig,
    pub(crate) place: Place,
    pub(crate) target: Postgres,
    store: PathBuf,
    /// What it is a copy of.
    source: PathBuf,
}

impl Case {
    pub(crate) fn new() -> Self {
        Self::with(&original().store)
    }

    /// Makes one whose source went on along timeline 2.
    pub(crate) fn switched() -> Self {
        Self::with(&original().switched)
    }

    fn with(store: &Path) -> Self {
        let place = Place::make();
        let from = store;
        let store = place.path().join("store");
        copy(from, &store);
        let url = format!("dir://{}", store.display());
        let backups = System::Store(resource::Store { url, ..Default::default() });
        Self { source: from.to_owned(), ..Self::of((place, "target"), backups) }
    }

    /// Makes one whose store is a bucket at an endpoint. All have the same, so that none may change it.
    pub(crate) fn in_bucket(endpoint: &str) -> Self {
        Self::in_bucket_at(endpoint, Place::make(), "target")
    }

    /// Makes one that restores into a directory of that name.
    pub(crate) fn in_bucket_at(endpoint: &str, place: Place, target: &str) -> Self {
        let key = SecretRef::Env("TEST_S3_KEY".into());
        let mut resource = bucket().resource_at(PREFIX, endpoint);
        (resource.access_key, resource.secret_key) = (Some(key.clone()), Some(key.clone()));
        let case = Self::of((place, target), System::Store(resource));
        Self { rig: case.rig.secret(key, "testing"), ..case }
    }

    fn of((place, name): (Place, &str), backups: System) -> Self {
        let target = place.resource(name, free_port());
        let rig = Rig::drill().resource("backups", backups).resource("db", System::Postgres(target.clone()));
        let data = place.subdir(name);
        fs::write(data.join("precious"), "not to be lost").expect("writes");
        let store = place.path().join("store");
        Self { original: original(), rig, place, target, store, source: PathBuf::new() }
    }

    /// Runs its server with the programs in another directory.
    pub(crate) fn with_programs(mut self, bin_dir: PathBuf) -> Self {
        self.target.bin_dir = Some(bin_dir);
        let system = System::Postgres(self.target.clone());
        Self { rig: self.rig.resource("db", system), ..self }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.target.data_dir.clone().expect("a data directory")
    }

    /// Returns where an object of the store is.
    pub(crate) fn object(&self, key: &str) -> PathBuf {
        self.store.join(key)
    }

    /// Returns where an object of the first backup is: the one whose name begins like this.
    pub(crate) fn base(&self, name: &str) -> PathBuf {
        only(&self.object(&format!("base/{}", self.original.first)), name)
    }

    /// Returns where a WAL segment is.
    pub(crate) fn segment(&self, name: &str) -> PathBuf {
        only(&self.object(&format!("wal/{}", self.original.system)), &format!("{name}.zst"))
    }

    pub(crate) fn marker(&self) -> Value {
        serde_json::from_slice(&fs::read(self.base("lifeboat.json")).expect("a marker")).expect("JSON")
    }

    /// Makes the marker of the first backup say of an object what is there now.
    pub(crate) fn fit_marker(&self, name: &str) {
        let mut marker = self.marker();
        let content = fs::read(self.base(name)).expect("an object");
        let objects = marker["objects"].as_array_mut().expect("a list");
        let object =
            objects.iter_mut().find(|object| object["name"].as_str().is_some_and(|it| it.starts_with(name)));
        let object = object.expect("the marker names it");
        object["size"] = json!(content.len());
        object["sha256"] = json!(hex(&Sha256::digest(&content)));
        fs::write(self.base("lifeboat.json"), marker.to_string()).expect("writes");
    }

    /// Brings the store back as it was.
    pub(crate) fn heal(&self) {
        fs::remove_dir_all(&self.store).expect("removes");
        copy(&self.source, &self.store);
    }

    pub(crate) async fn choose(&self, target: Option<Timestamp>) -> Result<Done, StepError> {
        let mut with = json!({"store": "backups"});
        if let Some(target) = target {
            with["target_time"] = json!(target.to_string());
        }
        self.rig.run("postgres.select_backup", with).await
    }

    /// Restores the first backup.
    pub(crate) async fn restore(&self) -> Result<Done, StepError> {
        let label = &self.original.first;
        let with = json!({"store": "backups", "backup": label, "cluster": "db", "existing": "move_aside"});
        self.rig.run("postgres.restore_base", with).await
    }

    pub(crate) async fn recover(&self, target: Option<Timestamp>) -> Result<Done, StepError> {
        self.recover_along("current", target).await
    }

    pub(crate) async fn recover_along(
        &self,
        timeline: &str,
        target: Option<Timestamp>,
    ) -> Result<Done, StepError> {
        let mut with = json!({"store": "backups", "cluster": "db", "timeline": timeline});
        if let Some(target) = target {
            with["target_time"] = json!(target.to_string());
        }
        self.rig.run("postgres.recover", with).await
    }

    /// Returns the rows of the restored server.
    pub(crate) fn rows(&self) -> Vec<u32> {
        let isolation = Isolation::serving(&self.data_dir()).expect("an isolated server");
        let mut psql = self.place.command("psql");
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        psql.arg(isolation.dir()).args(["-p", &self.target.port.to_string()]);
        psql.args(["-c", "select id from ledger order by id"]);
        let text = String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8");
        text.lines().map(|row| row.parse().expect("a number")).collect()
    }

    pub(crate) fn assert_rows(&self, last: u32) {
        assert_eq!(self.rows(), (1..=last).collect::<Vec<_>>());
    }

    /// Asserts that nothing was touched: what stood at the place stands there, and nothing else beside it.
    pub(crate) fn assert_untouched(&self) {
        let beside = names(self.data_dir().parent().expect("a parent"));
        let left: Vec<_> = beside.into_iter().filter(|name| name != "store").collect();
        assert_eq!(left, ["target"], "beside the target");
        assert_eq!(names(&self.data_dir()), ["precious"]);
        assert_eq!(fs::read_to_string(self.data_dir().join("precious")).expect("reads"), "not to be lost");
        assert_eq!(self.rig.made_at(), Vec::<PathBuf>::new(), "what the journal says was made");
    }

    pub(crate) fn assert_no_server(&self) {
        assert_eq!(PidFile::live(&self.data_dir()), None, "no server is left");
    }

    pub(crate) fn store_now(&self) -> Tree {
        Tree::of(&self.store)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn only(dir: &Path, name: &str) -> PathBuf {
    let found: Vec<_> = names(dir).into_iter().filter(|it| it.starts_with(name)).collect();
    assert_eq!(found.len(), 1, "{name} in {}: {found:?}", dir.display());
    dir.join(&found[0])
}

/// Asserts what a step was refused with, and that the message, its help or a cause has all these words.
pub(crate) fn assert_says(error: &StepError, (code, kind): (Code, FailureKind), words: &[&str]) {
    assert_eq!((error.code, error.kind), (code, kind), "{error}: {:?}", error.causes);
    let help = error.help.as_deref().unwrap_or_default();
    assert!(!help.is_empty(), "no help: {error}");
    let said = format!("{} {help} {}", error.message, error.causes.join(" "));
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

/// Everything below a directory: who may do what with it, when it was changed, and its content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, (u32, u32, i64, String)>);

impl Tree {
    pub(crate) fn of(dir: &Path) -> Self {
        let mut tree = Self(BTreeMap::new());
        tree.add(dir);
        tree
    }

    fn add(&mut self, path: &Path) {
        let meta = fs::symlink_metadata(path).expect("it is there");
        let content =
            if meta.is_file() { hex(&Sha256::digest(fs::read(path).expect("reads"))) } else { String::new() };
        self.0.insert(path.to_owned(), (meta.mode(), meta.uid(), meta.mtime_nsec(), content));
        if meta.is_dir() {
            fs::read_dir(path).expect("lists").flatten().for_each(|entry| self.add(&entry.path()));
        }
    }
}
