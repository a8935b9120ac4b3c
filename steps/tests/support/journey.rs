//! From a source that archives to a restored cluster, step by step.

use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::isolation::{Isolation, use_client_program};
use serde_json::{Value, json};

use super::archive::{Archive, wal_program};
use super::postgres::{Cluster, Options, free_port, succeed};
use super::rig::Rig;

/// A source and its store, and a place to restore to.
#[expect(missing_debug_implementations, reason = "the rig has none")]
pub struct Journey {
    /// Ends its servers before their directories go.
    pub rig: Rig,
    pub target: Postgres,
    pub source: Cluster,
    pub archive: Archive,
}

impl Journey {
    /// Starts a source with a table `ledger`.
    pub fn begin(archive: Archive) -> Self {
        use_client_program(wal_program().to_path_buf());
        let source = archive.cluster(Options::default());
        source.sql("create table ledger (id int primary key)");
        let target = source.place().resource("restored", free_port());
        let rig = Self::rig(&archive, &source, &target);
        Self { rig, target, source, archive }
    }

    /// Makes another run on the same systems.
    pub fn rig(archive: &Archive, source: &Cluster, target: &Postgres) -> Rig {
        let rig = Rig::drill()
            .resource("source", source.system())
            .resource("db", System::Postgres(target.clone()))
            .resource("backups", archive.system());
        archive.secrets().into_iter().fold(rig, |rig, secret| rig.secret(secret, "testing"))
    }

    /// Goes on in another run.
    pub fn another_run(&mut self) {
        self.rig = Self::rig(&self.archive, &self.source, &self.target);
    }

    /// Goes on in another run, to another place.
    pub fn to_another_place(&mut self, name: &str) {
        self.target = self.source.place().resource(name, free_port());
        self.another_run();
    }

    /// Takes a base backup and returns its label.
    pub async fn back_up(&self) -> String {
        let with = json!({"cluster": "source", "store": "backups"});
        let done = self.rig.run("postgres.base_backup", with).await.expect("backs up");
        done.outputs["label"].as_str().expect("text").to_owned()
    }

    /// Commits a row and returns a moment after that commit and before any later one.
    pub fn commit(&self, id: i32) -> Timestamp {
        self.source.sql(&format!("insert into ledger values ({id})"));
        self.now()
    }

    pub fn now(&self) -> Timestamp {
        let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.source.sql(sql).parse().expect("a time")
    }

    pub async fn restore(&self, label: &str, more: Value) -> Result<Done, StepError> {
        let with = merged(json!({"store": "backups", "backup": label, "cluster": "db"}), more);
        self.rig.run("postgres.restore_base", with).await
    }

    pub async fn undo_restore(&self, label: &str) -> Result<Done, StepError> {
        let with = json!({"store": "backups", "backup": label, "cluster": "db"});
        self.rig.undo("postgres.restore_base", with).await
    }

    pub async fn recover(&self, more: Value) -> Result<Done, StepError> {
        let with = merged(json!({"store": "backups", "cluster": "db"}), more);
        self.rig.run("postgres.recover", with).await
    }

    pub async fn choose(&self, more: Value) -> Result<Done, StepError> {
        self.rig.run("postgres.select_backup", merged(json!({"store": "backups"}), more)).await
    }

    /// Runs SQL on the restored server, over its private socket.
    pub fn sql(&self, sql: &str) -> String {
        let data_dir = self.target.data_dir.clone().expect("a data directory");
        let isolation = Isolation::serving(&data_dir).expect("an isolated server");
        let mut psql = self.source.place().command("psql");
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(isolation.dir());
        psql.args(["-p", &self.target.port.to_string(), "-c", sql]);
        String::from_utf8(succeed(&mut psql).stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// The rows of the restored ledger.
    pub fn ledger(&self) -> String {
        self.sql("select string_agg(id::text, ',' order by id) from ledger")
    }
}

fn merged(mut with: Value, more: Value) -> Value {
    let (Value::Object(all), Value::Object(more)) = (&mut with, more) else { panic!("parameters are maps") };
    all.extend(more);
    with
}
