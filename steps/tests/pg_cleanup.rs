//! What a drill leaves on a server of the environment: nothing, whatever it was killed in, and never less than was there.

pub mod support;

use std::process::{Child, Stdio};

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::StepError;
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};
use support::backup::TestStore;
use support::killed::{self, Fate};
use support::postgres::{Cluster, Options};
use support::rig::Rig;

const CREATE: &str = "postgres.create_database";
const RESTORE: &str = "postgres.restore_dump";
const SWAP: &str = "postgres.swap_database";
const DROP: &str = "postgres.drop_database";

/// A server with two databases, as somebody left it.
fn server() -> (Rig, Cluster) {
    let cluster = Cluster::start(&Options::default());
    for name in ["members", "spare"] {
        cluster.sql(&format!("create database {name}"));
        cluster.sql_in(name, &format!("create table which as select '{name}' as one"));
    }
    (Rig::drill().resource("db", cluster.system()), cluster)
}

/// Everything about databases that a drill could change.
fn listed(cluster: &Cluster) -> String {
    cluster.sql("select string_agg(format('%s %s %s', oid, datname, datallowconn), ', ' order by oid) from pg_database")
}

/// Somebody who runs a statement and goes on running it.
fn psql(cluster: &Cluster, database: &str, sql: &str) -> Child {
    let mut psql = cluster.place().command("psql");
    psql.args(["-X", "-U", "postgres", "-h"]).arg(&cluster.socket_dir);
    psql.args(["-p", &cluster.port.to_string(), "-d", database, "-c", sql]);
    psql.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql starts")
}

async fn all_gone(rig: &Rig) {
    for end in rig.clean_up(CREATE).await {
        end.expect("it is removed");
    }
}

fn create(name: &str) -> Value {
    json!({"cluster": "db", "database": name})
}

async fn dump(rig: &Rig) {
    let with = json!({"cluster": "db", "database": "members", "store": "backups"});
    rig.run("postgres.dump", with).await.expect("dumps");
}

fn restore(name: &str, existing: &str) -> Value {
    json!({"cluster": "db", "database": name, "store": "backups", "existing": existing, "analyze": false})
}

#[tokio::test]
async fn a_drill_leaves_the_databases_of_a_server_as_they_were() {
    let (rig, cluster) = server();
    let store = TestStore::make();
    let rig = rig.resource("backups", store.system());
    dump(&rig).await;
    let before = listed(&cluster);

    rig.run_as("fresh", CREATE, create("fresh")).await.expect("makes");
    cluster.sql_in("fresh", "create table filled_since (id int)");
    rig.run_as("copy", RESTORE, restore("copy", "refuse")).await.expect("restores");
    rig.run_as("in_place", RESTORE, restore("members", "move_aside")).await.expect("restores");
    rig.run_as("aside", DROP, json!({"cluster": "db", "database": "spare"})).await.expect("moves aside");
    rig.run_as("again", CREATE, create("spare")).await.expect("makes one of the same name");
    let swap = json!({"cluster": "db", "database": "members", "with": "copy", "keep_as": "exchanged"});
    rig.run_as("swap", SWAP, swap).await.expect("swaps");
    let gone = json!({"cluster": "db", "database": "fresh", "how": "delete"});
    rig.run_as("gone", DROP, gone).await.expect("a runbook may tidy up itself");
    assert_eq!(cluster.sql_in("members", "select one from which"), "members", "the swapped copy");

    all_gone(&rig).await;
    assert_eq!(listed(&cluster), before);
    for name in ["members", "spare"] {
        assert_eq!(cluster.sql_in(name, "select one from which"), name);
    }
}

#[tokio::test]
async fn who_is_logged_in_to_a_database_of_the_drill_does_not_keep_it() {
    let (rig, cluster) = server();
    let before = listed(&cluster);
    rig.run(CREATE, create("fresh")).await.expect("makes");
    let mut psql = cluster.place().command("psql");
    psql.args(["-X", "-U", "postgres", "-h"])
        .arg(&cluster.socket_dir)
        .args(["-p", &cluster.port.to_string()]);
    psql.args(["-d", "fresh", "-c", "select pg_sleep(3600)"]);
    let mut session =
        psql.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    support::postgres::wait_until("the session is there", || {
        cluster.sql("select count(*) from pg_stat_activity where datname = 'fresh'") == "1"
    });
    all_gone(&rig).await;
    assert_eq!(listed(&cluster), before);
    session.wait().expect("the server has ended it");
}

fn refusal(end: &Result<String, StepError>) -> &str {
    let error = end.as_ref().expect_err("it stays");
    assert_eq!(error.code, codes::LB1853, "{error}");
    &error.message
}

#[tokio::test]
async fn only_what_the_journal_describes_to_the_letter_is_dropped() {
    let (rig, cluster) = server();
    rig.run(CREATE, create("fresh")).await.expect("makes");

    cluster.sql("alter database fresh rename to precious");
    let before = listed(&cluster);
    let ends = rig.clean_up(CREATE).await;
    assert!(refusal(&ends[0]).contains("is called `precious` now"), "{ends:?}");
    assert_eq!(listed(&cluster), before, "somebody has taken it over");

    // Gone, and another one has its name.
    cluster.sql("drop database precious");
    cluster.sql("create database fresh");
    let before = listed(&cluster);
    all_gone(&rig).await;
    assert_eq!(listed(&cluster), before, "a database of the same name is not the same database");

    // The resource leads to another server by now, on which everything else is the same.
    let handle = |change: &dyn Fn(&mut Value)| {
        let mut reported = rig.reported();
        let CreatedKind::Within { handle, .. } = &mut reported.created[0].kind else { panic!("within") };
        change(handle);
    };
    let oid: u32 = cluster.sql("select oid from pg_database where datname = 'fresh'").parse().unwrap();
    handle(&|handle| handle["oid"] = json!(oid));
    handle(&|handle| handle["system"] = json!("7000000000000000000"));
    let ends = rig.clean_up(CREATE).await;
    assert!(refusal(&ends[0]).contains("is another one now"), "{ends:?}");
    assert_eq!(listed(&cluster), before);

    // Killed before anything was made, and somebody has made one of the name since.
    let system = cluster.sql("select system_identifier from pg_control_system()");
    handle(&|handle| {
        handle["system"] = json!(system);
        handle["oid"] = Value::Null;
    });
    all_gone(&rig).await;
    assert_eq!(listed(&cluster), before);

    handle(&|handle| *handle = json!({"what": "sung"}));
    assert!(refusal(&rig.clean_up(CREATE).await[0]).contains("cannot be read"));
}

#[tokio::test]
async fn names_are_given_back_as_far_as_they_can() {
    let (rig, cluster) = server();
    let swap = json!({"cluster": "db", "database": "members", "with": "spare"});
    let done = rig.run(SWAP, swap).await.expect("swaps");
    let aside = done.outputs["previous"].as_str().unwrap().to_owned();

    cluster.sql("alter database members rename to precious");
    let before = listed(&cluster);
    let error = rig.clean_up(SWAP).await.remove(0).expect_err("it is not where the step left it");
    assert_eq!(error.code, codes::LB1804, "{error}");
    assert_eq!(listed(&cluster), before, "nothing is renamed half");

    // What was moved aside is gone: the other one still gets its name back, and the loss is told.
    cluster.sql("alter database precious rename to members");
    cluster.sql(&format!("drop database {aside}"));
    let ends = rig.clean_up(SWAP).await;
    assert!(refusal(&ends[0]).contains("`members` was moved aside by this step, and is gone"), "{ends:?}");
    assert_eq!(cluster.sql_in("spare", "select one from which"), "spare");
}

#[tokio::test]
async fn a_server_that_does_not_answer_or_takes_no_writes_is_no_success() {
    let (mut rig, cluster) = server();
    rig.run(CREATE, create("fresh")).await.expect("makes");
    let mut resource = serde_json::to_value(cluster.resource()).expect("plain data");
    resource["kind"] = json!("postgres");
    resource["port"] = json!(1);
    resource["data_dir"] = Value::Null;
    rig.set_resource("db", resource);
    rig.clean_up(CREATE).await.remove(0).expect_err("nobody answers");
    assert_eq!(cluster.sql("select count(*) from pg_database where datname = 'fresh'"), "1");
}

#[tokio::test]
async fn nothing_is_recorded_on_a_server_that_the_run_has_made() {
    let (rig, cluster) = server();
    let rig = rig.resource("from:clone", cluster.system());
    let with = json!({"cluster": "from:clone", "database": "fresh"});
    rig.run(CREATE, with).await.expect("makes");
    assert_eq!(rig.reported().created, [], "it is removed whole");
}

/// Kills the step at moments at which it tells its journal something, in turns to end the drill there and to go on. There are at
/// least so many moments.
async fn at_moments(test: &str, (mut rig, cluster): (Rig, Cluster), (kind, with): (&str, Value), least: u64) {
    let before = listed(&cluster);
    let long = std::env::var_os("LIFEBOAT_TEST_LONG").is_some();
    let every = if long { 1 } else { (least / 4).max(1) };
    for moment in (0..).step_by(usize::try_from(every).expect("small")) {
        for goes_on in [false, true] {
            if !long && goes_on != (moment / every % 2 == 0) {
                continue;
            }
            rig.begin_run();
            let fate = killed::at(&rig, test, (kind, &with), moment);
            if goes_on {
                rig.run(kind, with.clone()).await.expect("the next attempt goes on");
            }
            all_gone(&rig).await;
            assert_eq!(listed(&cluster), before, "killed at {moment}, goes on: {goes_on}");
            if fate == Fate::Finished {
                assert!(moment >= least, "only {moment} moments");
                return;
            }
        }
    }
}

#[tokio::test]
async fn whatever_kills_the_making_of_a_database_leaves_none() {
    killed::victim().await;
    let test = "whatever_kills_the_making_of_a_database_leaves_none";
    at_moments(test, server(), (CREATE, create("fresh")), 8).await;
}

#[tokio::test]
async fn whatever_kills_a_restore_leaves_the_databases_as_they_were() {
    killed::victim().await;
    let (rig, cluster) = server();
    let store = TestStore::make();
    let rig = rig.resource("backups", store.system());
    dump(&rig).await;
    let test = "whatever_kills_a_restore_leaves_the_databases_as_they_were";
    at_moments(test, (rig, cluster), (RESTORE, restore("members", "move_aside")), 12).await;
}

#[tokio::test]
async fn whatever_kills_an_exchange_leaves_the_databases_as_they_were() {
    killed::victim().await;
    let test = "whatever_kills_an_exchange_leaves_the_databases_as_they_were";
    let with = json!({"cluster": "db", "database": "members", "with": "spare"});
    at_moments(test, server(), (SWAP, with), 4).await;
}

/// The server goes on making a database when the program that asked for it is gone.
#[tokio::test]
async fn a_database_that_the_server_is_still_making_does_not_appear_later() {
    let (rig, cluster) = server();
    let before = listed(&cluster);
    let scratch = format!("fresh_making_{}", rig.run_id.short());
    let waiting = |like: &str| {
        let sql = format!(
            "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and query like '{like}'"
        );
        cluster.sql(&sql) == "1"
    };
    let mut holds =
        psql(&cluster, "postgres", "begin; lock table pg_database in share mode; select pg_sleep(3600)");
    support::postgres::wait_until("the catalogue is locked", || {
        waiting("%pg_sleep(3600)")
            && cluster.sql("select count(*) from pg_locks where mode = 'ShareLock'") == "1"
    });
    let mut makes =
        psql(&cluster, "postgres", &format!("create database \"{scratch}\" template \"template0\""));
    support::postgres::wait_until("the database is being made", || waiting("create database%"));
    let system = cluster.sql("select system_identifier from pg_control_system()");
    let handle = json!({"what": "made", "system": system, "oid": null, "names": [scratch, "fresh"]});
    let kind = CreatedKind::Within { resource: "db".into(), handle };
    rig.reported().created.push(Created { id: "x".into(), what: "a database".into(), kind });
    all_gone(&rig).await;
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(3600)' and pid <> pg_backend_pid()");
    holds.wait().expect("it is ended");
    makes.wait().expect("it is ended, too, or has made its database");
    assert_eq!(listed(&cluster), before);
}
