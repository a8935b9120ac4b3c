//! From a backup that Lifeboat took itself to a promoted server: every kind of the family in its order.

pub mod support;

use jiff::Timestamp;
use lifeboat_engine::resource::{Heartbeat, System};
use lifeboat_steps::postgres::isolation::use_client_program;
use serde_json::json;
use support::archive::{Archive, wal_program};
use support::bucket::{Bucket, Versions};
use support::postgres::{Options, free_port};
use support::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back_to_just_before_the_incident() {
    come_back(&Archive::make()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_bucket_as_well() {
    come_back(&Archive::in_bucket(Bucket::make(Versions::None).resource("pg"))).await;
}

async fn come_back(archive: &Archive) {
    use_client_program(wal_program().to_path_buf());
    let source = archive.cluster(Options::default());
    source.sql("create database members");
    source.sql_in("members", "create table payments (id int primary key)");
    source.sql_in("members", "create table heartbeat (at timestamptz not null)");
    source.sql_in("members", "insert into payments select generate_series(1, 100)");

    let mut target = source.place().resource("restored", free_port());
    target.heartbeat =
        Some(Heartbeat { database: "members".into(), table: "heartbeat".into(), column: "at".into() });
    let rig = Rig::drill()
        .resource("source", source.system())
        .resource("db", System::Postgres(target))
        .resource("backups", archive.system());
    let rig = archive.secrets().into_iter().fold(rig, |rig, secret| rig.secret(secret, "testing"));

    let with = json!({"cluster": "source", "store": "backups"});
    let backup = rig.run("postgres.base_backup", with).await.expect("backs up");
    source.sql_in("members", "insert into payments select generate_series(101, 150)");
    source.sql_in("members", "insert into heartbeat values (clock_timestamp())");
    let incident = Timestamp::now();
    source.sql_in("members", "delete from payments");
    source.archive_wal();

    let with = json!({"store": "backups", "target_time": incident.to_string()});
    let chosen = rig.run("postgres.select_backup", with).await.expect("chooses");
    assert_eq!(chosen.outputs["backup"], backup.outputs["label"]);
    let with = json!({"store": "backups", "backup": chosen.outputs["backup"], "cluster": "db"});
    rig.run("postgres.restore_base", with).await.expect("restores");
    let with = json!({"store": "backups", "cluster": "db", "target_time": incident.to_string()});
    let recovered = rig.run("postgres.recover", with).await.expect("recovers");
    let point = &recovered.recovery_points[0];
    assert_eq!(point.method, "heartbeat row");
    assert!(point.time.parse::<Timestamp>().expect("a time") < incident);

    let with = json!({"cluster": "db", "queries": [{
        "name": "payments", "database": "members", "sql": "select count(*) as n from payments",
        "expect": ["rows[0].n == 150"],
    }]});
    rig.run("postgres.verify", with).await.expect("is sound");
    rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    let with = json!({"cluster": "db", "database": "members", "sql": "select pg_is_in_recovery() as r",
        "expect": ["not rows[0].r"]});
    rig.run("postgres.query", with).await.expect("takes writes");
    rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
}
