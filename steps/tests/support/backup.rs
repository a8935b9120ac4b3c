//! Base backups in a store, made with `pg_basebackup` directly.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::model::ids::RunId;
use lifeboat_engine::plan::hex;
use lifeboat_engine::resource::{Store, System};
use lifeboat_steps::postgres::controldata::ControlData;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::postgres::Cluster;

/// A store in a directory.
#[derive(Debug)]
pub struct TestStore {
    dir: tempfile::TempDir,
}

impl TestStore {
    pub fn make() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::Builder::new().prefix("lb-store-").tempdir().expect("a temporary directory");
        super::keeper::watch(dir.path());
        // The archive command runs as the server's user.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("own directory");
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn system(&self) -> System {
        System::Store(Store { url: format!("dir://{}", self.path().display()), ..Default::default() })
    }

    /// The directory of a backup.
    pub fn base(&self, label: &str) -> PathBuf {
        self.path().join("base").join(label)
    }

    /// Takes a base backup of a cluster, compressed with zstd.
    pub fn back_up(&self, cluster: &Cluster, label: &str) {
        let scratch = cluster.place().subdir("basebackup");
        let mut command = cluster.place().command("pg_basebackup");
        command.args(["-Ft", "-X", "stream", "-c", "fast", "--no-sync", "--manifest-checksums=SHA256"]);
        command.args(["-U", "postgres", "-h"]).arg(&cluster.socket_dir);
        command.args(["-p", &cluster.port.to_string(), "-D"]).arg(scratch.join("out"));
        let started: Timestamp = now(cluster);
        super::postgres::succeed(&mut command);
        let stopped: Timestamp = now(cluster);
        let base = self.base(label);
        fs::create_dir_all(&base).expect("a directory");
        for entry in fs::read_dir(scratch.join("out")).expect("pg_basebackup wrote it") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let content = fs::read(&path).expect("a file");
            if name.ends_with(".tar") {
                let packed = zstd::encode_all(&content[..], 1).expect("zstd");
                fs::write(base.join(format!("{name}.zst")), packed).expect("the store");
            } else {
                fs::write(base.join(name), content).expect("the store");
            }
        }
        fs::remove_dir_all(&scratch).expect("scratch");
        self.write_marker(label, &details(cluster, started, stopped));
    }

    /// Writes the marker for the objects that are there now.
    pub fn write_marker(&self, label: &str, details: &Value) {
        let base = self.base(label);
        let mut objects = Vec::new();
        for entry in fs::read_dir(&base).expect("the backup") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name == "lifeboat.json" {
                continue;
            }
            let content = fs::read(&path).expect("an object");
            let sha256 = hex(&Sha256::digest(&content));
            objects.push(json!({"name": name, "size": content.len(), "sha256": sha256}));
        }
        let marker = json!({
            "format": 1, "kind": "postgres.base", "label": label, "run": RunId::generate(), "step": "backup",
            "started_at": details["start_time"], "finished_at": details["stop_time"], "objects": objects,
            "details": details,
        });
        let text = serde_json::to_vec_pretty(&marker).expect("JSON");
        fs::write(base.join("lifeboat.json"), text).expect("the store");
    }

    /// The details in the marker of a backup.
    pub fn details(&self, label: &str) -> Value {
        let text = fs::read(self.base(label).join("lifeboat.json")).expect("a marker");
        serde_json::from_slice::<Value>(&text).expect("JSON")["details"].clone()
    }

    /// Puts a base archive made of these entries in place of the real one, with a marker that fits it.
    pub fn replace_base(&self, label: &str, tar: &[u8]) {
        let packed = zstd::encode_all(tar, 1).expect("zstd");
        fs::write(self.base(label).join("base.tar.zst"), packed).expect("the store");
        self.write_marker(label, &self.details(label));
    }

    /// The base archive of a backup, decompressed.
    pub fn base_tar(&self, label: &str) -> Vec<u8> {
        let packed = fs::read(self.base(label).join("base.tar.zst")).expect("an object");
        zstd::decode_all(&packed[..]).expect("zstd")
    }
}

fn now(cluster: &Cluster) -> Timestamp {
    let text = cluster
        .sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    text.parse().expect("RFC 3339")
}

fn details(cluster: &Cluster, started: Timestamp, stopped: Timestamp) -> Value {
    let control = ControlData::read(&cluster.place().tools, &cluster.data_dir).expect("a control file");
    let version = cluster.place().tools.version;
    json!({
        "system_id": control.system_id, "major": version.major, "version": version.to_string(),
        "timeline": control.timeline, "start_lsn": control.checkpoint, "stop_lsn": control.checkpoint,
        "start_time": started, "stop_time": stopped, "wal_segment_size": control.wal_segment_size,
    })
}
