//! Connections, programs and control files against a real server.

pub mod support;

use std::time::Duration;

use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::StepContext;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::connect::{Login, PgError};
use lifeboat_steps::postgres::controldata::{ClusterState, ControlData};
use support::postgres::{Cluster, Options, bare, free_port};

const LIMIT: Duration = Duration::from_secs(240);

fn context(secret: Option<(&SecretRef, &str)>) -> (StepContext, support::rig::Rig) {
    let mut rig = support::rig::Rig::drill();
    if let Some((reference, value)) = secret {
        rig = rig.secret(reference.clone(), value);
    }
    (rig.bare_context(), rig)
}

#[tokio::test]
async fn a_socket_connection_runs_statements_and_reports_errors_with_their_sqlstate() {
    let cluster = Cluster::start(&Options::default());
    let (ctx, _rig) = context(None);
    let client = Login::of(&ctx, &cluster.resource()).expect("a login").connect().await.expect("connects");
    let row = client.query_one("select 41 + 1", &[], LIMIT).await.expect("one row");
    assert_eq!(row.get::<_, i32>(0), 42);
    let error = client.query("select * from nowhere", &[], LIMIT).await.expect_err("no such table");
    let text = error.to_string();
    assert!(text.contains("nowhere") && text.contains("42P01"), "{text}");
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_cancelled_on_the_server() {
    let cluster = Cluster::start(&Options::default());
    let (ctx, _rig) = context(None);
    let client = Login::of(&ctx, &cluster.resource()).expect("a login").connect().await.expect("connects");
    let error =
        client.query("select pg_sleep(3600)", &[], Duration::from_millis(200)).await.expect_err("late");
    assert!(matches!(error, PgError::TimedOut { .. }), "{error}");
    support::postgres::wait_until("the statement is gone", || {
        cluster.sql("select count(*) from pg_stat_activity where query like 'select pg_sleep(3600)%' and state = 'active'")
            == "0"
    });
    assert!(client.query("select 1", &[], LIMIT).await.is_err(), "the connection is not used again");
}

#[tokio::test]
async fn a_wrong_password_is_one_clear_error() {
    let cluster = Cluster::start(&Options { password: Some("right one".into()), ..Options::default() });
    let reference = SecretRef::Env("PG_TEST_PASSWORD".into());
    let mut resource = cluster.resource();
    resource.host = Some("127.0.0.1".into());
    resource.password = Some(reference.clone());

    let (ctx, _rig) = context(Some((&reference, "wrong one")));
    let error = Login::of(&ctx, &resource).expect("a login").connect().await.expect_err("wrong").into_step();
    assert_eq!(error.code, codes::LB1241);
    assert!(error.message.contains("28P01") && error.message.contains("postgres"), "{}", error.message);
    assert!(!error.message.contains("wrong one") && error.help.is_some());

    let (ctx, _rig) = context(Some((&reference, "right one")));
    assert!(Login::of(&ctx, &resource).expect("a login").connect().await.is_ok());

    resource.password = None;
    let error = Login::of(&ctx, &resource).expect("a login").connect().await.expect_err("none").into_step();
    assert_eq!(error.code, codes::LB1241, "{}", error.message);
}

#[tokio::test]
async fn nothing_listening_is_named_and_may_pass() {
    let (ctx, _rig) = context(None);
    let mut resource = bare();
    resource.host = Some("127.0.0.1".into());
    resource.port = free_port();
    let error = Login::of(&ctx, &resource).expect("a login").connect().await.expect_err("nobody there");
    assert!(error.may_pass());
    let error = error.into_step();
    assert_eq!(error.code, codes::LB1240);
    assert!(error.message.contains(&resource.port.to_string()), "{}", error.message);
}

#[tokio::test]
async fn peer_logins_work_for_the_servers_user() {
    let cluster = Cluster::start(&Options::default());
    let user = cluster.place().account.as_ref().map(|account| account.name.clone());
    // As root, the server must see the user `postgres`; otherwise whoever runs this, under a role of that name.
    if user.is_some() {
        std::fs::write(cluster.data_dir.join("pg_hba.conf"), "local all all peer\n").expect("pg_hba.conf");
        cluster.stop("fast");
        cluster.start_server();
        let (ctx, _rig) = context(None);
        let client = Login::of(&ctx, &cluster.resource()).expect("a login").connect().await;
        client.expect("peer sees os_user").query("select 1", &[], LIMIT).await.expect("works");
    }
}

#[test]
fn the_control_file_is_read() {
    let cluster = Cluster::start(&Options { data_checksums: true, ..Options::default() });
    let data = ControlData::read(&cluster.place().tools, &cluster.data_dir).expect("a data directory");
    assert_eq!(data.system_id, cluster.sql("select system_identifier from pg_control_system()"));
    assert_eq!(data.standby_settings["max_connections"], 30);
    assert_eq!(data.wal_segment_size, 1 << 20);
    assert!(data.data_checksums && data.state == ClusterState::InProduction && data.timeline == 1);
    let error =
        ControlData::read(&cluster.place().tools, cluster.place().path()).expect_err("no data directory");
    assert_eq!(error.code, codes::LB1247);
}
