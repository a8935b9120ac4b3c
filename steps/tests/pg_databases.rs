//! Dumps, and databases that are made, exchanged and dropped: on real servers, and after interruptions.

pub mod support;

use std::path::PathBuf;
use std::process::{Child, Stdio};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::{Probe, StepError};
use lifeboat_steps::postgres::codes;
use lifeboat_steps::store;
use serde_json::{Value, json};
use support::backup::TestStore;
use support::bucket::{Bucket, Versions, endpoint};
use support::postgres::{Cluster, Options, wait_until};
use support::rig::Rig;

fn members(cluster: &Cluster) {
    cluster.sql("create role app login");
    // What others have put there must not get into restored databases.
    cluster.sql_in("template1", "create schema app; create table app.people (stray int)");
    cluster.sql("create database members template template0");
    cluster.sql_in(
        "members",
        "create schema app authorization app; set role app; \
         create type app.state as enum ('active', 'left'); \
         create table app.people (id int generated always as identity primary key, name text not null, \
           state app.state not null default 'active', key text generated always as (lower(name)) stored); \
         create table app.payments (id serial primary key, person int not null references app.people, \
           amount numeric(10,2) check (amount > 0)); \
         create index payments_person on app.payments (person); \
         create view app.paid as select name, sum(amount) from app.people p join app.payments y on y.person = p.id group by 1; \
         create function app.total() returns numeric language sql as 'select sum(amount) from app.payments'; \
         insert into app.people (name) select 'P' || n from generate_series(1, 200) n; \
         insert into app.payments (person, amount) select 1 + n % 200, 1.50 from generate_series(1, 1000) n",
    );
}

fn setting() -> (Rig, Cluster, TestStore) {
    let cluster = Cluster::start(&Options::default());
    members(&cluster);
    let store = TestStore::make();
    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", store.system());
    (rig, cluster, store)
}

async fn dump(rig: &Rig, step: &str, more: Value) -> Result<Done, StepError> {
    let mut with = json!({"cluster": "db", "database": "members", "store": "backups"});
    merge(&mut with, more);
    rig.run_as(step, "postgres.dump", with).await
}

fn merge(with: &mut Value, more: Value) {
    let (Value::Object(with), Value::Object(more)) = (with, more) else { panic!("maps") };
    with.extend(more);
}

fn restore_with(more: Value) -> Value {
    let mut with = json!({"cluster": "db", "database": "restored", "store": "backups"});
    merge(&mut with, more);
    with
}

async fn restore(rig: &Rig, more: Value) -> Result<Done, StepError> {
    rig.run("postgres.restore_dump", restore_with(more)).await
}

fn databases(cluster: &Cluster) -> String {
    cluster.sql("select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate")
}

fn text<'a>(done: &'a Done, output: &str) -> &'a str {
    done.outputs[output].as_str().expect("text")
}

#[tokio::test]
async fn a_dump_comes_back_under_another_name_with_everything_of_its_snapshot() {
    let (rig, cluster, store) = setting();
    let dumped = dump(&rig, "dump", json!({})).await.expect("dumps");
    assert_eq!((&dumped.outputs["tables"], &dumped.outputs["rows"]), (&json!(2), &json!(1200)));
    let label = text(&dumped, "backup").to_owned();
    let globals =
        std::fs::read_to_string(store.path().join("dump").join(&label).join("globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE app") && !globals.contains("PASSWORD"), "{globals}");
    cluster.sql_in("members", "delete from app.payments where id > 500");

    let done = restore(&rig, json!({"jobs": 4})).await.expect("restores");
    assert_eq!((text(&done, "backup"), text(&done, "previous")), (label.as_str(), ""));
    assert_eq!((&done.outputs["tables"], &done.outputs["rows"]), (&json!(2), &json!(1200)));
    assert_eq!(done.recovery_points[0].method, "dump snapshot");
    assert_eq!(done.recovery_points[0].time, text(&dumped, "taken_at"));
    assert!(done.checks.len() >= 10 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert_eq!(cluster.sql_in("restored", "select count(*) from app.payments"), "1000");
    let owner = "select relowner::regrole from pg_class where oid = 'app.payments'::regclass";
    assert_eq!(cluster.sql_in("restored", owner), "app");
    let statistics = "select count(*) > 0 from pg_stats where schemaname = 'app'";
    assert_eq!(cluster.sql_in("restored", statistics), "t", "ANALYZE was run");
    assert_eq!(databases(&cluster), "members postgres restored", "nothing is left of the making");
    assert!(rig.made_at().is_empty(), "the dump that was brought here is gone: {:?}", rig.made_at());
}

#[tokio::test]
async fn a_directory_from_a_bucket_is_restored_by_several_connections() {
    let cluster = Cluster::start(&Options::default());
    members(&cluster);
    let bucket = Bucket::make(Versions::None);
    let resource = bucket.resource_at("team", endpoint());
    let mut written = json!({"kind": "store"});
    merge(&mut written, serde_json::to_value(&resource).unwrap());
    merge(&mut written, json!({"access_key": {"env": "KEY"}, "secret_key": {"env": "KEY"}}));
    let key = lifeboat_engine::secret::SecretRef::Env("KEY".into());
    let rig = Rig::drill()
        .resource("db", cluster.system())
        .resource_from("backups", written)
        .secret(key, "testing");
    let dumped = dump(&rig, "dump", json!({"format": "directory", "jobs": 3})).await.expect("dumps");
    let toc = format!("team/dump/{}/database/toc.dat", text(&dumped, "backup"));
    assert!(bucket.get(&toc).is_some(), "{:?}", bucket.keys());
    restore(&rig, json!({"jobs": 3, "owner": "postgres", "privileges": "skip"})).await.expect("restores");
    assert_eq!(cluster.sql_in("restored", "select app.total()"), "1500.00");
    let owner = "select relowner::regrole from pg_class where oid = 'app.people'::regclass";
    assert_eq!(cluster.sql_in("restored", owner), "postgres");
}

#[tokio::test]
async fn a_dump_that_is_cut_off_or_damaged_is_never_restored() {
    let (rig, cluster, store) = setting();
    let dumped = dump(&rig, "dump", json!({})).await.expect("dumps");
    let file = store.path().join("dump").join(text(&dumped, "backup")).join("database.dump");
    let whole = std::fs::read(&file).unwrap();

    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, flipped).unwrap();
    let error = restore(&rig, json!({})).await.expect_err("one bit");
    assert_eq!(error.code, store::codes::LB1108, "{error}");

    std::fs::write(&file, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(restore(&rig, json!({})).await.expect_err("cut off").code, store::codes::LB1108);

    // Its table of contents is whole, and `pg_restore --list` is content with it.
    std::fs::write(store.path().join("cut.dump"), &whole[..whole.len() - 100]).unwrap();
    let error = restore(&rig, json!({"object": "cut.dump"})).await.expect_err("nobody says how long it was");
    assert_eq!(error.code, codes::LB1279, "{error}");
    std::fs::write(store.path().join("plain.sql"), "\\connect members\ndrop table app.payments;").unwrap();
    let error = restore(&rig, json!({"object": "plain.sql"})).await.expect_err("plain SQL");
    assert_eq!(error.code, codes::LB1285, "{error}");
    assert_eq!(databases(&cluster), "members postgres");
}

/// Nobody waits for hours for somebody who has gone home with a transaction open.
#[tokio::test]
async fn a_table_that_is_locked_against_readers_is_waited_for_as_long_as_it_is_said() {
    let (rig, cluster, store) = setting();
    let mut holder = cluster.place().command("psql");
    holder.args(["-X", "-U", "postgres", "-d", "members", "-h"]).arg(&cluster.socket_dir);
    holder.args([
        "-p",
        &cluster.port.to_string(),
        "-c",
        "begin; lock table app.people; select pg_sleep(600)",
    ]);
    let mut holder = holder.stdout(Stdio::null()).spawn().expect("psql starts");
    let held = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 'app.people'::regclass and granted";
    wait_until("the lock is held", || cluster.sql_in("members", held) == "1");
    for counts in [true, false] {
        let with = json!({"lock_timeout": "300ms", "counts": counts});
        let error = dump(&rig, "locked", with).await.expect_err("is locked");
        assert_eq!((error.code, error.kind), (codes::LB1815, FailureKind::Transient), "{error}");
        assert!(error.help.as_deref().is_some_and(|help| help.contains("pg_stat_activity")), "{error:?}");
        assert!(!store.path().join("dump").join("lifeboat.json").exists());
    }
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep(600)%' and pid <> pg_backend_pid()");
    holder.wait().expect("psql ends");
    let done = dump(&rig, "locked", json!({})).await.expect("dumps");
    assert_eq!(done.outputs["rows"], json!(1200));
}

/// Large objects, materialized views and rows behind policies: none of them is a plain row of a table.
#[tokio::test]
async fn large_objects_views_with_rows_and_rows_behind_policies_come_back() {
    let (rig, cluster, _store) = setting();
    cluster.sql_in(
        "members",
        "select lo_from_bytea(4711, decode(repeat('00ff', 100000), 'hex')); comment on large object 4711 is 'a photo'; \
         alter large object 4711 owner to app; \
         create materialized view app.totals as select person, sum(amount) from app.payments group by 1; \
         alter table app.payments enable row level security; alter table app.payments force row level security; \
         create policy own on app.payments for select to app using (person = 1)",
    );
    dump(&rig, "dump", json!({})).await.expect("dumps");
    let done = restore(&rig, json!({})).await.expect("restores");
    assert_eq!(done.outputs["rows"], json!(1200), "the policy hides none from the dump");
    let large =
        "select md5(lo_get(oid)), obj_description(oid, 'pg_largeobject') from pg_largeobject_metadata";
    assert_eq!(cluster.sql_in("restored", large), cluster.sql_in("members", large));
    assert_eq!(
        cluster.sql_in(
            "restored",
            "select count(*), relispopulated from app.totals, pg_class where relname = 'totals' group by 2"
        ),
        "200|t"
    );
    let seen = "set role app; select count(*) from app.payments";
    assert_eq!(cluster.sql_in("restored", seen), cluster.sql_in("members", seen));
    assert_eq!(cluster.sql_in("restored", seen), "5");
    // Who does not see every row makes no dump.
    let app = lifeboat_engine::resource::Postgres { user: "app".into(), ..cluster.resource() };
    let rig = rig.resource("app", lifeboat_engine::resource::System::Postgres(app));
    let with = json!({"cluster": "app", "globals": false});
    let error = dump(&rig, "half", with).await.expect_err("sees half of it");
    assert!(error.message.contains("row-level security"), "{error}");
}

#[tokio::test]
async fn a_dump_without_a_marker_is_restored_with_a_warning() {
    let (rig, cluster, store) = setting();
    let mut command = cluster.place().command("pg_dump");
    command.args(["-Fc", "-U", "postgres", "-d", "members", "-h"]).arg(&cluster.socket_dir);
    command.args(["-p", &cluster.port.to_string()]);
    let output = support::postgres::succeed(&mut command);
    std::fs::create_dir_all(store.path().join("nightly")).unwrap();
    std::fs::write(store.path().join("nightly/members_0300.dump"), output.stdout).unwrap();
    let with = json!({"object": "nightly/members_0300.dump"});
    let done = restore(&rig, with.clone()).await.expect("restores");
    assert!(done.recovery_points.is_empty() && done.outputs["taken_at"].is_null());
    assert!(done.warnings[0].contains("has no marker"), "{:?}", done.warnings);
    assert_eq!(cluster.sql_in("restored", "select count(*) from app.payments"), "1000");
}

#[tokio::test]
async fn what_does_not_fit_is_said_before_anything_is_written() {
    let (rig, _source, _store) = setting();
    dump(&rig, "dump", json!({})).await.expect("dumps");
    let other = Cluster::start(&Options::default());
    let mut rig = rig;
    rig.set_resource(
        "other",
        serde_json::to_value(lifeboat_engine::resource::Resource {
            access: lifeboat_engine::resource::Access::Write,
            optional: false,
            system: other.system(),
        })
        .unwrap(),
    );
    let error = restore(&rig, json!({"cluster": "other"})).await.expect_err("no role app");
    assert_eq!(error.code, codes::LB1281);
    assert!(error.message.contains("roles are missing: app"), "{error}");
    assert_eq!(databases(&other), "postgres");
    let done = restore(&rig, json!({"cluster": "other", "owner": "postgres", "privileges": "skip"})).await;
    assert_eq!(text(&done.expect("owned by another"), "database"), "restored");
}

#[tokio::test]
async fn an_existing_database_is_refused_or_moved_aside_and_comes_back() {
    let (rig, cluster, _store) = setting();
    dump(&rig, "dump", json!({})).await.expect("dumps");
    cluster.sql_in("members", "truncate app.payments");
    let error = restore(&rig, json!({"database": "members"})).await.expect_err("in the way");
    assert_eq!(error.code, codes::LB1800);
    let _session = session(&cluster, "members");

    let with = restore_with(json!({"database": "members", "existing": "move_aside"}));
    let done = rig.run("postgres.restore_dump", with.clone()).await.expect("restores");
    let aside = text(&done, "previous").to_owned();
    assert!(aside.starts_with("members_pre_"), "{aside}");
    assert_eq!(cluster.sql_in("members", "select count(*) from app.payments"), "1000");
    let open = format!("select datallowconn from pg_database where datname = '{aside}'");
    assert_eq!(cluster.sql(&open), "f", "nobody logs in to the old one by mistake");
    // The end of the step was not written down before a crash.
    let Probe::Done(again) = rig.probe("postgres.restore_dump", with.clone()).await.expect("asks") else {
        panic!("it is done")
    };
    assert_eq!(again.outputs, done.outputs);

    rig.undo("postgres.restore_dump", with.clone()).await.expect("undoes");
    assert_eq!(cluster.sql_in("members", "select count(*) from app.payments"), "0", "the old one is back");
    assert!(databases(&cluster).starts_with("members members_restore_"), "{}", databases(&cluster));
    rig.undo("postgres.restore_dump", with).await.expect("undoing again changes nothing");
    assert_eq!(cluster.sql_in("members", "select count(*) from app.payments"), "0");
}

#[tokio::test]
async fn half_a_restore_begins_anew_and_undo_drops_it() {
    let (rig, cluster, _store) = setting();
    dump(&rig, "dump", json!({})).await.expect("dumps");
    // What a kill in the middle of pg_restore leaves: the name is recorded, the database has some tables.
    let into = format!("restored_restore_{}", rig.run_id.short());
    let half = || {
        cluster.sql(&format!("create database {into} template template0"));
        cluster.sql_in(&into, "create schema app; create table app.people (id int)");
    };
    half();
    let recorded = |key: &str, value: Value| {
        let mut reported = rig.reported();
        reported.recorded.entry("postgres_restore_dump".into()).or_default().insert(key.into(), value);
    };
    recorded("into", json!(into));
    let Probe::NotDone = rig.probe("postgres.restore_dump", restore_with(json!({}))).await.expect("asks")
    else {
        panic!("half is not done")
    };
    restore(&rig, json!({})).await.expect("begins anew");
    assert_eq!(cluster.sql_in("restored", "select count(*) from app.people"), "200");
    assert_eq!(databases(&cluster), "members postgres restored");

    let rig = Rig::drill().resource("db", cluster.system()).resource("backups", _store.system());
    let into = format!("restored_restore_{}", rig.run_id.short());
    cluster.sql(&format!("create database {into} template template0"));
    let recorded = json!({"into": into}).as_object().cloned().unwrap();
    rig.reported().recorded.insert("postgres_restore_dump".into(), recorded);
    rig.undo("postgres.restore_dump", restore_with(json!({}))).await.expect("undoes");
    assert_eq!(databases(&cluster), "members postgres restored", "what was there before stays");
}

#[tokio::test]
async fn a_restore_that_fails_leaves_no_database() {
    let (rig, cluster, _store) = setting();
    cluster.sql_in("members", "create function app.fails(int) returns int language plpgsql as 'begin if current_database() <> ''members'' then raise exception ''not here''; end if; return 1; end'");
    cluster.sql_in(
        "members",
        "create table app.odd (id int, check (app.fails(id) = 1)); insert into app.odd values (1)",
    );
    dump(&rig, "dump", json!({})).await.expect("dumps");
    let error = restore(&rig, json!({})).await.expect_err("the rows cannot be loaded");
    assert_eq!(error.code, codes::LB1282, "{error}");
    assert!(error.message.contains("not here"), "{error}");
    assert_eq!(databases(&cluster), "members postgres");
}

/// Somebody who is logged in.
fn session(cluster: &Cluster, database: &str) -> Session {
    let mut command = cluster.place().command("psql");
    command.args(["-X", "-U", "postgres", "-h"]).arg(&cluster.socket_dir);
    command.args(["-p", &cluster.port.to_string(), "-d", database, "-c", "select pg_sleep(3600)"]);
    command.env("PGAPPNAME", "import").stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("psql starts");
    wait_until("the session is there", || {
        cluster.sql(&format!("select count(*) from pg_stat_activity where datname = '{database}'")) == "1"
    });
    Session(child)
}

struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn swap(more: Value) -> Value {
    let mut with = json!({"cluster": "db", "database": "members", "with": "members_new"});
    merge(&mut with, more);
    with
}

fn two_databases() -> (Rig, Cluster) {
    let cluster = Cluster::start(&Options::default());
    for (name, text) in [("members", "old"), ("members_new", "new")] {
        cluster.sql(&format!("create database {name}"));
        cluster.sql_in(name, &format!("create table which as select '{text}' as one"));
    }
    (Rig::drill().resource("db", cluster.system()), cluster)
}

fn which(cluster: &Cluster) -> String {
    cluster.sql_in("members", "select one from which")
}

#[tokio::test]
async fn databases_are_exchanged_and_exchanged_back() {
    let (rig, cluster) = two_databases();
    let _session = session(&cluster, "members");
    let error =
        rig.run("postgres.swap_database", swap(json!({"sessions": "refuse"}))).await.expect_err("in use");
    assert_eq!(error.code, codes::LB1802);
    assert!(error.causes[0].contains("import"), "{:?}", error.causes);
    assert_eq!(which(&cluster), "old");

    let done = rig.run("postgres.swap_database", swap(json!({}))).await.expect("swaps");
    assert_eq!(which(&cluster), "new");
    let previous = text(&done, "previous").to_owned();
    let again = rig.run("postgres.swap_database", swap(json!({}))).await.expect("is done");
    assert_eq!(again.outputs, done.outputs);
    assert_eq!(which(&cluster), "new", "a second attempt does not swap back");

    rig.undo("postgres.swap_database", swap(json!({}))).await.expect("undoes");
    assert_eq!(which(&cluster), "old");
    assert_eq!(databases(&cluster), "members members_new postgres");
    assert_eq!(cluster.sql("select bool_and(datallowconn) from pg_database where datname ~ 'members'"), "t");
    rig.undo("postgres.swap_database", swap(json!({}))).await.expect("again");
    assert_eq!(which(&cluster), "old");
    assert!(!previous.is_empty());
}

#[tokio::test]
async fn an_exchange_that_was_cut_off_goes_on_or_back() {
    for back in [false, true] {
        let (rig, cluster) = two_databases();
        rig.run("postgres.swap_database", swap(json!({}))).await.expect("swaps");
        rig.undo("postgres.swap_database", swap(json!({}))).await.expect("undoes");
        // Killed after logins were closed and before the renames: what was recorded is still there.
        cluster.sql("alter database members allow_connections false");
        cluster.sql("alter database members_new allow_connections false");
        let Probe::NotDone = rig.probe("postgres.swap_database", swap(json!({}))).await.expect("asks") else {
            panic!("nothing was renamed")
        };
        if back {
            rig.undo("postgres.swap_database", swap(json!({}))).await.expect("opens them again");
            assert_eq!(which(&cluster), "old");
        } else {
            rig.run("postgres.swap_database", swap(json!({}))).await.expect("goes on");
            assert_eq!(which(&cluster), "new");
            // Somebody has put them elsewhere since.
            cluster.sql("alter database members rename to elsewhere");
            let error = rig.undo("postgres.swap_database", swap(json!({}))).await.expect_err("not as it was");
            assert_eq!(error.code, codes::LB1804, "{error}");
        }
    }
}

#[tokio::test]
async fn a_rename_that_the_server_refuses_leaves_everything_open() {
    let (rig, cluster) = two_databases();
    let name = format!("members_pre_{}", rig.run_id.short());
    rig.run("postgres.swap_database", swap(json!({}))).await.expect("swaps");
    rig.undo("postgres.swap_database", swap(json!({}))).await.expect("undoes");
    // In the way only after the step had looked.
    cluster.sql(&format!("create database {name}"));
    let error = rig.run("postgres.swap_database", swap(json!({}))).await.expect_err("in the way");
    assert_eq!(error.code, codes::LB1803, "{error}");
    assert_eq!(which(&cluster), "old");
    assert_eq!(cluster.sql_in("members_new", "select one from which"), "new");
}

#[tokio::test]
async fn databases_are_made_once_and_dropped_only_when_nobody_uses_them() {
    let (rig, cluster) = two_databases();
    let make = json!({"cluster": "db", "database": "fresh", "encoding": "UTF8", "owner": "postgres"});
    let done = rig.run("postgres.create_database", make.clone()).await.expect("makes");
    assert_eq!(done.outputs["created"], json!(true));
    assert!(matches!(rig.probe("postgres.create_database", make.clone()).await, Ok(Probe::Done(_))));
    let taken = json!({"cluster": "db", "database": "members"});
    let error = rig.run_as("again", "postgres.create_database", taken.clone()).await.expect_err("taken");
    assert_eq!(error.code, codes::LB1800);
    let keep = json!({"cluster": "db", "database": "members", "existing": "keep", "encoding": "LATIN1"});
    let error = rig.run_as("again", "postgres.create_database", keep).await.expect_err("of another encoding");
    assert!(error.message.contains("UTF8"), "{error}");
    rig.undo("postgres.create_database", make).await.expect("undoes");
    assert_eq!(databases(&cluster), "members members_new postgres");

    let aside = json!({"cluster": "db", "database": "members"});
    let session = session(&cluster, "members");
    let error = rig.run("postgres.drop_database", aside.clone()).await.expect_err("in use");
    assert_eq!(error.code, codes::LB1802);
    drop(session);
    // A server that sleeps does not see that its client is gone.
    cluster.sql("select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'members'");
    wait_until("the session is gone", || {
        cluster.sql("select count(*) from pg_stat_activity where datname = 'members'") == "0"
    });
    let done = rig.run("postgres.drop_database", aside.clone()).await.expect("moves aside");
    assert!(text(&done, "moved_to").starts_with("members_pre_"));
    assert!(matches!(rig.probe("postgres.drop_database", aside.clone()).await, Ok(Probe::Done(_))));
    rig.undo("postgres.drop_database", aside).await.expect("undoes");
    assert_eq!(which(&cluster), "old");

    let delete = json!({"cluster": "db", "database": "members_new", "how": "delete"});
    rig.run_as("gone", "postgres.drop_database", delete.clone()).await.expect("drops");
    rig.run_as("gone", "postgres.drop_database", delete).await.expect("again is success");
    assert_eq!(databases(&cluster), "members postgres");
    for own in ["postgres", "template1"] {
        let with = json!({"cluster": "db", "database": own, "how": "delete"});
        assert_eq!(
            rig.run_as("own", "postgres.drop_database", with).await.expect_err("own").code,
            codes::LB1805
        );
    }
    let with = json!({"cluster": "db", "database": "nobody"});
    assert_eq!(
        rig.run_as("none", "postgres.drop_database", with).await.expect_err("none").code,
        codes::LB1801
    );
}

#[tokio::test]
async fn passwords_reach_the_programs_by_file() {
    let password = "s:e\\cret'";
    let cluster = Cluster::start(&Options { password: Some(password.into()), ..Options::default() });
    members(&cluster);
    let store = TestStore::make();
    let secret = lifeboat_engine::secret::SecretRef::File(PathBuf::from("/secret"));
    let postgres = lifeboat_engine::resource::Postgres {
        host: Some("127.0.0.1".into()),
        password: Some(secret.clone()),
        ..cluster.resource()
    };
    let rig = Rig::drill()
        .resource("db", lifeboat_engine::resource::System::Postgres(postgres))
        .resource("backups", store.system())
        .secret(secret, password);
    dump(&rig, "dump", json!({})).await.expect("dumps");
    restore(&rig, json!({})).await.expect("restores");
    let shown = format!("{:?}", rig.reported().lines);
    assert!(!shown.contains("s:e"), "{shown}");
}
