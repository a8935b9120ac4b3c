//! Backups that a script has made with `pg_basebackup -Ft -z` and a plain copy of each WAL segment: no marker, one flat
//! archive.

pub mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use lifeboat_engine::resource::{Store, System};
use lifeboat_engine::secret::SecretRef;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use serde_json::json;
use support::archive::wal_program;
use support::bucket::{Bucket, Versions};
use support::postgres::{Cluster, Options, Place, free_port, succeed, wait_until};
use support::rig::Rig;

const LABEL: &str = "postgres/20261121_020000";

/// A source whose script archives into `wal/` and backs up into `postgres/`.
struct Scene {
    rig: Rig,
    target: lifeboat_engine::resource::Postgres,
    source: Cluster,
    root: PathBuf,
    _place: Place,
}

impl Scene {
    fn set() -> Self {
        use_client_program(wal_program().to_path_buf());
        let place = Place::make();
        let root = place.subdir("store");
        let wal = place.subdir("store/wal");
        let settings = vec![
            "archive_mode = on".to_owned(),
            format!("archive_command = 'cp %p {}/%f'", wal.display()),
            "log_timezone = 'UTC'".to_owned(),
        ];
        let source = Cluster::start(&Options { settings, ..Options::default() });
        source.sql("create table ledger (id int primary key)");
        let target = source.place().resource("restored", free_port());
        let url = format!("dir://{}", root.display());
        let rig = Self::rig(&target, System::Store(Store { url, ..Store::default() }));
        Self { rig, target, source, root, _place: place }
    }

    fn rig(target: &lifeboat_engine::resource::Postgres, store: System) -> Rig {
        Rig::drill().resource("backups", store).resource("db", System::Postgres(target.clone()))
    }

    fn base(&self) -> PathBuf {
        self.root.join(LABEL)
    }

    /// What the script does, as it stands in many handbooks.
    fn back_up(&self) {
        fs::create_dir_all(self.root.join("postgres")).expect("makes");
        self.source.place().own(&self.root.join("postgres"));
        let mut command = self.source.place().command("pg_basebackup");
        command.args(["-U", "postgres", "-h"]).arg(&self.source.socket_dir);
        command.args(["-p", &self.source.port.to_string(), "-Ft", "-z", "-c", "fast", "-D"]).arg(self.base());
        succeed(&mut command);
    }

    fn commit(&self, id: i32) -> String {
        self.source.sql(&format!("insert into ledger values ({id})"));
        self.source
            .sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    }

    fn ledger(&self) -> String {
        let data_dir = self.target.data_dir.clone().expect("a data directory");
        let isolation = Isolation::serving(&data_dir).expect("an isolated server");
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAt", "-U", "postgres", "-d", "postgres", "-h"]).arg(isolation.dir());
        let sql = "select string_agg(id::text, ',' order by id) from ledger";
        psql.args(["-p", &self.target.port.to_string(), "-c", sql]);
        String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Chooses, restores, recovers and promotes; returns what the first two steps warned of.
    async fn come_back(&self, target: &str) -> (Vec<String>, Vec<String>) {
        let with = json!({"store": "backups", "unmarked": "postgres", "target_time": target});
        let chosen = self.rig.run("postgres.select_backup", with).await.expect("chooses");
        assert_eq!(chosen.outputs["backup"], LABEL);
        let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
        let base = self.rig.run("postgres.restore_base", with).await.expect("restores");
        if self.base().join("backup_manifest").exists() {
            let with = json!({"cluster": "db", "files": true, "store": "backups", "backup": LABEL});
            let files = self.rig.run("postgres.verify", with).await.expect("are those of the manifest");
            assert!(files.checks[0].name.contains("pg_verifybackup") && files.checks[0].passed, "{files:?}");
        }
        let with = json!({"store": "backups", "cluster": "db", "target_time": target});
        let done = self.rig.run("postgres.recover", with).await.expect("recovers");
        assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
        assert_eq!(self.ledger(), "1,2");
        self.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
        (chosen.warnings, base.warnings)
    }

    /// Goes on in another run, to another place.
    fn move_to(&mut self, name: &str, store: System) {
        self.target = self.source.place().resource(name, free_port());
        self.rig = Self::rig(&self.target, store);
    }

    fn store(&self) -> System {
        System::Store(Store { url: format!("dir://{}", self.root.display()), ..Store::default() })
    }

    async fn refused(&self, code: lifeboat_engine::code::Code) -> String {
        let with = json!({"store": "backups", "unmarked": "postgres"});
        let error = self.rig.run("postgres.select_backup", with).await.expect_err("must be refused");
        assert_eq!(error.code, code, "{error}");
        error.message
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// Says that a word stands in one of them.
fn says(warnings: &[String], word: &str) -> bool {
    warnings.iter().any(|warning| warning.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_script_has_backed_up_comes_back_from_a_directory_and_a_bucket() {
    let mut scene = Scene::set();
    scene.commit(1);
    scene.back_up();
    let newest = json!({"store": "backups", "unmarked": "postgres"});
    let done = scene.rig.run("postgres.select_backup", newest).await.expect("is there");
    let end = done.outputs["stop_time"].as_str().expect("text").to_owned();
    // The script's archive tells the end to the second only.
    wait_until("the backup has certainly ended", || {
        scene.source.sql(&format!("select clock_timestamp() > '{end}'")) == "t"
    });
    let target = scene.commit(2);
    scene.source.archive_wal();
    scene.commit(3);
    scene.source.archive_wal();

    let with = json!({"store": "backups", "unmarked": "postgres", "target_time": "2001-01-01T00:00:00Z"});
    let error = scene.rig.run("postgres.select_backup", with).await.expect_err("too early");
    assert!(error.code == codes::LB1221 && error.message.contains(LABEL), "{error}");
    let marked = json!({"store": "backups"});
    let error = scene.rig.run("postgres.select_backup", marked).await.expect_err("has no marker");
    assert!(error.code == codes::LB1220 && error.help.expect("help").contains("unmarked"));

    let (chosen, base) = scene.come_back(&target).await;
    assert!(says(&chosen, "no marker") && says(&base, "by size only"), "{chosen:?} {base:?}");
    assert!(!says(&chosen, "when its objects were written"), "the history file tells: {chosen:?}");

    let bucket = Bucket::make(Versions::None);
    for path in files(&scene.root) {
        let key = path.strip_prefix(&scene.root).expect("below").display().to_string();
        bucket.put(&format!("backups/{key}"), fs::read(&path).expect("reads"));
    }
    let mut resource = bucket.resource("backups");
    let (id, key) = (SecretRef::Env("S3_ID".into()), SecretRef::Env("S3_KEY".into()));
    (resource.access_key, resource.secret_key) = (Some(id.clone()), Some(key.clone()));
    scene.move_to("from-the-bucket", System::Store(resource));
    scene.rig = std::mem::replace(&mut scene.rig, Rig::drill()).secret(id, "testing").secret(key, "testing");
    scene.come_back(&target).await;

    // The least that such a script leaves: one archive and the log.
    for name in ["pg_wal.tar.gz", "backup_manifest"] {
        fs::remove_file(scene.base().join(name)).expect("removes");
    }
    for path in files(&scene.root.join("wal")) {
        if path.extension().is_some_and(|extension| extension == "backup") {
            fs::remove_file(path).expect("removes");
        }
    }
    scene.move_to("from-the-least", scene.store());
    let (chosen, base) = scene.come_back(&target).await;
    for word in ["when its objects were written", "consistent is not known", "no backup_manifest"] {
        assert!(says(&chosen, word), "{word}: {chosen:?}");
    }
    assert!(says(&base, "no backup_manifest"), "{base:?}");

    faults(&mut scene).await;
}

/// Exchanges a line at the beginning of a compressed archive for another one.
fn relabelled(archive: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(archive).read_to_end(&mut tar).expect("is an archive");
    let at = tar.windows(from.len()).position(|window| window == from.as_bytes()).expect("the line");
    tar[at..at + to.len()].copy_from_slice(to.as_bytes());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&tar).expect("packs");
    packed.finish().expect("packs")
}

/// What is damaged is refused, the sooner the better.
async fn faults(scene: &mut Scene) {
    scene.move_to("never", scene.store());
    let archive = scene.base().join("base.tar.gz");
    let whole = fs::read(&archive).expect("reads");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(&archive, damaged).expect("writes");
    let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
    let error = scene.rig.run("postgres.restore_base", with).await.expect_err("damaged");
    assert!(error.code == codes::LB1255 && error.message.contains("base.tar.gz"), "{error}");
    assert!(!scene.target.data_dir.clone().expect("a place").exists());

    fs::write(&archive, &whole[..100]).expect("writes");
    assert!(scene.refused(codes::LB1225).await.contains(LABEL));
    // Of the same length, so that the archive stays an archive.
    fs::write(
        &archive,
        relabelled(&whole, "LABEL: pg_basebackup base backup", "INCREMENTAL FROM LSN: 0/02000028"),
    )
    .expect("writes");
    assert!(scene.refused(codes::LB1225).await.contains("pg_combinebackup"));
    let with = json!({"store": "backups", "backup": LABEL, "cluster": "db"});
    let error = scene.rig.run("postgres.restore_base", with).await.expect_err("incremental");
    assert!(error.code == codes::LB1225 && error.message.contains("incremental"), "{error}");
    assert!(!scene.target.data_dir.clone().expect("a place").exists());
    fs::write(&archive, whole).expect("writes");
    let with = json!({"store": "backups", "backup": LABEL});
    let error = scene.rig.run("postgres.verify_backup", with).await.expect_err("has no marker");
    assert!(error.code == codes::LB1830 && error.help.expect("help").contains("postgres.clone"));
    let wal: Vec<_> = files(&scene.root.join("wal"));
    // Its own first segment is needed to know whose it is.
    let mut segments: Vec<_> =
        wal.iter().filter(|path| path.file_name().is_some_and(|name| name.len() == 24)).collect();
    segments.sort();
    let kept: Vec<_> = segments.iter().map(|path| fs::read(path).expect("reads")).collect();
    for path in &segments {
        fs::remove_file(path).expect("removes");
    }
    assert!(scene.refused(codes::LB1225).await.contains("first WAL segment"));
    for (path, content) in segments.iter().zip(&kept) {
        fs::write(path, content).expect("writes");
    }
    let missing = segments[segments.len() - 2];
    fs::remove_file(missing).expect("removes");
    let name = missing.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(scene.refused(codes::LB1222).await.contains(&name));
}
