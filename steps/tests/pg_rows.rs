//! Rows brought back into a live table: what is written, what is never touched, and what is taken back.

pub mod support;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Probe, StepError};
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};
use support::postgres::{Cluster, Options};
use support::rig::Rig;

const SCHEMA: &str = "
    create schema app;
    create table app.plans (id int primary key, name text not null);
    create table app.people (id int generated always as identity primary key, name text not null, plan int references app.plans,
      parent int references app.people, joined timestamptz not null default '2026-01-01', photo bytea, facts jsonb, extra json,
      tags text[], search text generated always as (lower(name)) stored);
    create table app.payments (id serial primary key, person int references app.people on delete cascade, amount numeric(10,2));
    insert into app.plans values (1, 'free'), (2, 'paid');
    insert into app.people (name, plan, photo, facts, extra, tags)
      select 'P' || n, 1 + n % 2, decode(md5(n::text), 'hex'), jsonb_build_object('n', n), '{\"b\" : 1,  \"a\":2}', array['a b', null, '\"']
      from generate_series(1, 100) n;
    update app.people set parent = 1 where id in (2, 3);
    insert into app.payments (person, amount) select n, n from generate_series(1, 100) n;";

/// A live database, and a copy of it in a database beside it, as a restored dump would be.
fn setting() -> (Rig, Cluster) {
    let cluster = Cluster::start(&Options::default());
    for name in ["live", "copy"] {
        cluster.sql(&format!("create database {name}"));
        cluster.sql_in(name, SCHEMA);
    }
    cluster.sql_in("live", "create table app.mails (text text)");
    cluster.sql_in(
        "live",
        "create function app.mail() returns trigger language plpgsql as 'begin insert into app.mails values (new.name); return new; end'",
    );
    cluster.sql_in(
        "live",
        "create trigger mail after insert or update on app.people for each row execute function app.mail()",
    );
    (Rig::drill().resource("db", cluster.system()), cluster)
}

fn with(more: Value) -> Value {
    let mut with = json!({
        "from": "db", "from_database": "copy", "cluster": "db", "database": "live", "table": "app.people", "max_rows": 50,
    });
    let (Value::Object(all), Value::Object(more)) = (&mut with, more) else { panic!("maps") };
    all.extend(more);
    with
}

async fn recover(rig: &Rig, more: Value) -> Result<Done, StepError> {
    rig.run("postgres.recover_table", with(more)).await
}

fn counts(done: &Done) -> String {
    let names = ["recovered", "missing", "different", "same", "only_live", "skipped", "inserted", "replaced"];
    names.map(|name| done.outputs[name].to_string()).join(" ")
}

fn live(cluster: &Cluster, sql: &str) -> String {
    cluster.sql_in("live", sql)
}

const DIGEST: &str = "select md5(string_agg(p::text, '|' order by id)) from app.people p";

/// Deletes 20 rows, changes 5 others, adds one.
fn damage(cluster: &Cluster) {
    let sql = "set session_replication_role = replica; delete from app.people where id > 80; \
               update app.people set name = 'changed', facts = null where id between 10 and 14; \
               insert into app.people (name) values ('new')";
    live(cluster, sql);
}

#[tokio::test]
async fn missing_rows_come_back_and_live_ones_stay_as_they_are() {
    let (rig, cluster) = setting();
    damage(&cluster);
    // As where the table was emptied with `restart identity`, and filled again.
    live(&cluster, "select setval('app.people_id_seq', 70)");
    let before = live(&cluster, DIGEST);
    let done = recover(&rig, json!({"dry_run": true})).await.expect("counts");
    assert_eq!(counts(&done), "100 20 5 75 1 0 0 0");
    assert_eq!(live(&cluster, DIGEST), before, "a dry run writes nothing");
    let sequence = "select last_value, is_called from app.people_id_seq";
    assert_eq!(live(&cluster, sequence), "70|t", "a dry run moves no sequence");
    assert!(matches!(rig.probe("postgres.recover_table", with(json!({}))).await, Ok(Probe::NotDone)));

    let done = recover(&rig, json!({})).await.expect("recovers");
    assert_eq!(counts(&done), "100 20 5 75 1 0 20 0");
    assert!(done.checks.len() >= 5 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    let differs = "select id, name, plan, parent, joined, photo, facts, extra::text, tags, search from app.people where id > 80 and id <= 100 order by id";
    assert_eq!(live(&cluster, differs), cluster.sql_in("copy", differs));
    assert_eq!(live(&cluster, "select count(*) from app.people where name = 'changed'"), "5");
    assert_eq!(live(&cluster, "select count(*) from app.mails"), "0", "no trigger of the user's ran");
    assert_eq!(live(&cluster, "select tgenabled from pg_trigger where tgname = 'mail'"), "O");
    live(&cluster, "insert into app.people (name) values ('next')");
    assert_eq!(
        live(&cluster, "select max(id) from app.people"),
        "102",
        "the sequence gives out what is free"
    );
    assert_eq!(live(&cluster, "select count(*) from app.mails"), "1", "triggers run again");

    // The end of the step was not written down before a crash.
    let Probe::Done(again) = rig.probe("postgres.recover_table", with(json!({}))).await.expect("asks") else {
        panic!("it was committed")
    };
    assert_eq!(counts(&again), counts(&done));
    let again = recover(&rig, json!({})).await.expect("a second attempt finds that it is done");
    assert_eq!(counts(&again), counts(&done));
}

/// A sequence that was never asked gives out its first value; one that the table does not own is used all the same; and what
/// fails at last has moved neither.
#[tokio::test]
async fn sequences_never_give_out_what_came_back_and_stay_where_nothing_does() {
    let (rig, cluster) = setting();
    for name in ["live", "copy"] {
        cluster.sql_in(
            name,
            "create sequence app.shared; create sequence app.down increment -1; \
             create table app.codes (id serial primary key, code int not null default nextval('app.shared'), \
               low bigint not null default nextval('app.down'));
             insert into app.codes default values",
        );
    }
    live(
        &cluster,
        "truncate app.codes restart identity; alter sequence app.shared restart; alter sequence app.down restart",
    );
    let more = json!({"table": "app.codes"});
    let states = "select s.last_value, s.is_called, t.last_value, t.is_called, u.last_value, u.is_called
        from app.codes_id_seq s, app.shared t, app.down u";
    let untouched = live(&cluster, states);
    assert_eq!(untouched, "1|f|1|f|-1|f");
    // A trigger that changes what was recovered fails the step when everything is written.
    live(
        &cluster,
        "create function app.spoil() returns trigger language plpgsql as 'begin new.code := 7; return new; end';
         create trigger spoil before insert on app.codes for each row execute function app.spoil()",
    );
    let spoilt = with(json!({"table": "app.codes", "triggers": "on"}));
    let error = rig.run("postgres.recover_table", spoilt).await.expect_err("not what was recovered");
    assert_eq!(error.code, codes::LB1813, "{error}");
    recover(&rig, json!({"table": "app.codes", "dry_run": true})).await.expect("counts");
    assert_eq!(live(&cluster, states), untouched);
    recover(&rig, more).await.expect("recovers");
    live(&cluster, "drop trigger spoil on app.codes; insert into app.codes default values");
    assert_eq!(
        live(&cluster, "select string_agg(c::text, ' ' order by id) from app.codes c"),
        "(1,1,-1) (2,2,-2)"
    );
}

#[tokio::test]
async fn a_role_that_may_not_set_a_sequence_is_told_before_it_counts() {
    let (rig, cluster) = setting();
    live(&cluster, "delete from app.payments where id > 50");
    live(
        &cluster,
        "create role clerk login; grant create on database live to clerk; grant usage, create on schema app to clerk; \
         grant all on app.payments, app.people to clerk; create role owner; grant owner to clerk; \
         alter table app.payments owner to owner; alter sequence app.payments_id_seq owned by none; \
         alter sequence app.payments_id_seq owner to postgres",
    );
    let mut clerk = cluster.resource();
    clerk.user = "clerk".into();
    let rig = rig.resource("clerk", lifeboat_engine::resource::System::Postgres(clerk));
    for dry_run in [true, false] {
        let more = json!({"cluster": "clerk", "table": "app.payments", "dry_run": dry_run});
        let error = recover(&rig, more).await.expect_err("may not set it");
        assert!(error.code == codes::LB1810 && error.message.contains("payments_id_seq"), "{error}");
    }
    assert_eq!(live(&cluster, "select count(*) from app.payments"), "50");
}

#[tokio::test]
async fn changed_rows_are_replaced_and_all_of_it_is_taken_back() {
    let (rig, cluster) = setting();
    damage(&cluster);
    let before = live(&cluster, DIGEST);
    let payments = live(&cluster, "select count(*) from app.payments");
    let done = recover(&rig, json!({"mode": "replace"})).await.expect("recovers");
    assert_eq!(counts(&done), "100 20 5 75 1 0 20 5");
    assert_eq!(live(&cluster, &DIGEST.replace("p::text", "name")), cluster.sql_in("copy", "select md5(string_agg(name, '|' order by id)) from (select id, name from app.people union all select 101, 'new') p"));
    let image = done.outputs["before_image"].as_str().unwrap().to_owned();
    assert_eq!(live(&cluster, &format!("select count(*) from {image}.before where name = 'changed'")), "5");

    // Its 20 payments refer to recovered people: deleting these again would delete them, too.
    let undo = |more: Value| rig.undo("postgres.recover_table", with(more));
    let error = undo(json!({"mode": "replace"})).await.expect_err("they are referred to");
    assert_eq!(error.code, codes::LB1814, "{error}");
    assert_eq!(live(&cluster, "select count(*) from app.payments"), payments);
    live(&cluster, "set session_replication_role = replica; delete from app.payments where person > 80");
    live(&cluster, "update app.people set name = 'by somebody' where id = 90");
    let error = undo(json!({"mode": "replace"})).await.expect_err("changed since");
    assert!(error.message.contains("1 of the recovered rows"), "{error}");
    live(&cluster, "update app.people set name = 'P90' where id = 90");
    undo(json!({"mode": "replace"})).await.expect("undoes");
    assert_eq!(live(&cluster, DIGEST), before);
    undo(json!({"mode": "replace"})).await.expect("again is no error");
    assert_eq!(live(&cluster, DIGEST), before);
}

#[tokio::test]
async fn references_to_rows_that_are_gone_are_refused_or_left_out() {
    let (rig, cluster) = setting();
    // People of plan 2, plan 2 itself, and person 1, to whom 2 and 3 refer.
    live(
        &cluster,
        "set session_replication_role = replica; delete from app.people where id in (1, 2, 3, 4, 5); delete from app.plans where id = 2",
    );
    let before = live(&cluster, DIGEST);
    let error = recover(&rig, json!({})).await.expect_err("plan 2 is gone");
    assert_eq!(error.code, codes::LB1811, "{error}");
    assert!(error.message.contains("people_plan_fkey"), "{error}");
    assert_eq!(live(&cluster, DIGEST), before);
    let done =
        recover(&rig, json!({"orphans": "skip", "only": "id < 6"})).await.expect("recovers what it can");
    // 1, 3 and 5 are of plan 2; 2 and 4 are of plan 1, but 2 refers to 1.
    assert_eq!(done.outputs["inserted"], json!(1), "{done:?}");
    assert_eq!(done.outputs["skipped"], json!(4));
    assert_eq!(
        live(&cluster, "select string_agg(id::text, ' ' order by id) from app.people where id < 6"),
        "4"
    );
}

#[tokio::test]
async fn too_many_rows_other_columns_and_locks_stop_it_before_anything_is_written() {
    let (rig, cluster) = setting();
    damage(&cluster);
    let before = live(&cluster, DIGEST);
    let error = recover(&rig, json!({"max_rows": 24, "mode": "replace"})).await.expect_err("25 rows");
    assert_eq!(error.code, codes::LB1812, "{error}");
    let error = recover(&rig, json!({"from_database": "live"})).await.expect_err("the same database");
    assert_eq!(error.code, codes::LB1810, "{error}");

    let mut holder = cluster.place().command("psql");
    holder
        .args(["-X", "-U", "postgres", "-h"])
        .arg(&cluster.socket_dir)
        .args(["-p", &cluster.port.to_string()]);
    holder.args(["-d", "live", "-c", "begin; lock table app.people; select pg_sleep(3600)"]);
    let mut holder = holder.stdout(std::process::Stdio::null()).spawn().expect("psql starts");
    support::postgres::wait_until("the lock is held", || {
        live(
            &cluster,
            "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 'app.people'::regclass",
        ) == "1"
    });
    let error = recover(&rig, json!({"lock_timeout": "200ms"})).await.expect_err("locked");
    assert_eq!(error.code, codes::LB1815, "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    live(
        &cluster,
        "select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()",
    );

    live(&cluster, "alter table app.people alter plan type bigint");
    let error = recover(&rig, json!({})).await.expect_err("another type");
    assert_eq!(error.code, codes::LB1810);
    assert!(error.message.contains("`plan` is integer"), "{error}");
    live(&cluster, "alter table app.people alter plan type int");
    // Another unique index, on which a recovered row collides with a live one.
    live(&cluster, "create unique index on app.people (name) where id < 10 or id > 80");
    live(
        &cluster,
        "set session_replication_role = replica; update app.people set name = 'P90' where id = 101",
    );
    let error = recover(&rig, json!({})).await.expect_err("a name twice");
    assert_eq!(error.code, codes::LB1811, "{error}");
    live(
        &cluster,
        "set session_replication_role = replica; update app.people set name = 'new' where id = 101",
    );
    assert_eq!(live(&cluster, DIGEST), before);
    assert_eq!(live(&cluster, "select count(*) from pg_namespace where nspname like 'rec_%'"), "0");
}

#[tokio::test]
async fn a_table_that_is_gone_comes_back_beside_the_others() {
    let (rig, cluster) = setting();
    live(&cluster, "drop table app.payments");
    let more = json!({"table": "app.payments", "mode": "new_table", "new_table": "app.payments_recovered", "max_rows": 100});
    let done = recover(&rig, more.clone()).await.expect("copies");
    assert_eq!(done.outputs["inserted"], json!(100));
    assert_eq!(live(&cluster, "select sum(amount) from app.payments_recovered"), "5050.00");
    let Probe::Done(_) = rig.probe("postgres.recover_table", with(more.clone())).await.expect("asks") else {
        panic!("it was committed")
    };
    rig.undo("postgres.recover_table", with(more.clone())).await.expect("undoes");
    assert_eq!(live(&cluster, "select to_regclass('app.payments_recovered') is null"), "t");
    live(&cluster, "create table app.payments_recovered (id int)");
    let error = recover(&rig, more).await.expect_err("in the way");
    assert_eq!(error.code, codes::LB1810);
}

fn change(more: Value) -> Value {
    let mut with = json!({"cluster": "db", "database": "live", "tables": ["app.payments"], "max_rows": 10});
    let (Value::Object(all), Value::Object(more)) = (&mut with, more) else { panic!("maps") };
    all.extend(more);
    with
}

const PAYMENTS: &str = "select md5(string_agg(p::text, '|' order by id)) from app.payments p";

fn correction() -> Value {
    json!({"statements": [
        {"sql": "update app.payments set amount = $1 where id = any ($2::int[])", "params": ["2.50", "{3,4}"]},
        {"sql": "delete from app.payments where id = 5"},
        {"sql": "insert into app.payments (person, amount) values (7, -1.25)"},
        {"sql": "update app.payments set amount = amount where id = 9"},
    ], "invariants": [{
        "name": "payments", "sql": "select count(*) as n, sum(amount) as total from app.payments",
        "expect": ["rows[0].n == before[0].n", "rows[0].total < before[0].total"],
    }]})
}

#[tokio::test]
async fn an_approved_change_is_made_once_and_taken_back_row_by_row() {
    let (rig, cluster) = setting();
    let before = live(&cluster, PAYMENTS);
    let mut dry = change(correction());
    dry["dry_run"] = json!(true);
    let looked = rig.run_as("look", "postgres.change", dry).await.expect("looks");
    assert_eq!(looked.outputs["rows"], json!(4), "{looked:?}");
    let expected = json!([{"table": "app.payments", "inserted": 1, "updated": 2, "deleted": 1}]);
    assert_eq!(looked.outputs["tables"], expected);
    let first = &looked.outputs["difference"][0];
    assert_eq!(
        (&first["key"], &first["before"], &first["after"]),
        (&json!({"id": 3}), &json!({"amount": 3.0}), &json!({"amount": 2.5}))
    );
    assert_eq!(live(&cluster, PAYMENTS), before, "nothing was changed");

    let mut with = change(correction());
    with["approved"] = json!("0123");
    let error = rig.run("postgres.change", with.clone()).await.expect_err("another difference");
    assert_eq!(error.code, codes::LB1823, "{error}");
    assert_eq!(live(&cluster, PAYMENTS), before);
    with["approved"] = looked.outputs["digest"].clone();
    let done = rig.run("postgres.change", with.clone()).await.expect("changes");
    assert_eq!(done.outputs["digest"], looked.outputs["digest"]);
    let after = live(&cluster, PAYMENTS);
    assert_ne!(after, before);
    assert_eq!(live(&cluster, "select count(*) from pg_trigger where tgname like 'zzz_lifeboat%'"), "0");

    // The end of the step was not written down before a crash.
    let Probe::Done(again) = rig.probe("postgres.change", with.clone()).await.expect("asks") else {
        panic!("it was committed")
    };
    assert_eq!(again.outputs, done.outputs);
    rig.run("postgres.change", with.clone()).await.expect("is made once");
    assert_eq!(live(&cluster, PAYMENTS), after);

    // Somebody has changed one of the rows since.
    live(&cluster, "update app.payments set amount = 9 where id = 4");
    let changed = live(&cluster, PAYMENTS);
    let error = rig.undo("postgres.change", with.clone()).await.expect_err("changed since");
    assert_eq!(error.code, codes::LB1824, "{error}");
    assert_eq!(live(&cluster, PAYMENTS), changed, "all or nothing");
    live(&cluster, "update app.payments set amount = 2.50 where id = 4");
    rig.undo("postgres.change", with.clone()).await.expect("undoes");
    assert_eq!(live(&cluster, PAYMENTS), before);
    rig.undo("postgres.change", with.clone()).await.expect("again is no error");
    let error = rig.run("postgres.change", with).await.expect_err("not a second time");
    assert_eq!(error.code, codes::LB1826, "{error}");
}

#[tokio::test]
async fn the_reverse_script_takes_every_type_back() {
    let (rig, cluster) = setting();
    live(&cluster, "drop trigger mail on app.people");
    let before = live(
        &cluster,
        &DIGEST.replace(
            "p::text",
            "id::text || name || photo::text || facts::text || tags::text || joined::text",
        ),
    );
    let with = json!({"tables": ["app.people", "app.payments"], "statements": [
        {"sql": "delete from app.people where id = 50"},
        {"sql": "update app.people set name = 'it''s \\ $lifeboat$', photo = null, facts = null, tags = '{}', joined = 'infinity' where id = 60"},
    ], "idempotency_key": "ticket 4711"});
    let done = rig.run("postgres.change", change(with.clone())).await.expect("changes");
    // The payment of person 50 went with the cascade.
    assert_eq!(done.outputs["rows"], json!(3), "{done:?}");
    // Another run finds that this was done.
    let other = Rig::drill().resource("db", cluster.system());
    let again = other.run("postgres.change", change(with)).await.expect("is made once");
    assert!(again.warnings[0].contains("made before"), "{:?}", again.warnings);

    let script = done.outputs["reverse"].as_str().unwrap();
    let text = std::fs::read_to_string(script).expect("the script");
    let copy = cluster.place().path().join("reverse.sql");
    std::fs::write(&copy, text).unwrap();
    cluster.place().own(&copy);
    let mut psql = cluster.place().command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "live", "-h"])
        .arg(&cluster.socket_dir);
    psql.args(["-p", &cluster.port.to_string(), "-f"]).arg(&copy);
    support::postgres::succeed(&mut psql);
    let after = live(
        &cluster,
        &DIGEST.replace(
            "p::text",
            "id::text || name || photo::text || facts::text || tags::text || joined::text",
        ),
    );
    assert_eq!(after, before);
    assert_eq!(live(&cluster, "select count(*) from app.payments where person = 50"), "1");
}

/// A number with more digits than a machine's, a time whose zone is another in each session, and an interval, which is written
/// in many ways: all come back as they were.
#[tokio::test]
async fn what_is_taken_back_has_every_digit() {
    let (rig, cluster) = setting();
    live(
        &cluster,
        "create table app.exact (id int primary key, n numeric, at timestamptz, span interval, f float8, big bigint)",
    );
    live(&cluster, "insert into app.exact select i, '12345678901234567890.12345678901234567890'::numeric + i, '2026-03-29 02:30:00+01',
        '1 mon 2 days 03:04:05.000006', 0.1::float8 + 0.2, 9007199254740993 from generate_series(1, 3) i");
    const ROWS: &str = "select string_agg(e::text, '|' order by id) from app.exact e";
    let before = live(&cluster, ROWS);
    let with = change(json!({"tables": ["app.exact"], "statements": [
        {"sql": "delete from app.exact where id = 1"},
        {"sql": "update app.exact set n = n + $1 where id = 2", "params": ["0.00000000000000000001"]},
    ]}));
    rig.run("postgres.change", with.clone()).await.expect("changes");
    assert_ne!(live(&cluster, ROWS), before);
    live(
        &cluster,
        "alter database live set timezone = 'Asia/Kolkata'; alter database live set intervalstyle = 'iso_8601'",
    );
    rig.undo("postgres.change", with).await.expect("undoes");
    live(&cluster, "alter database live reset all");
    assert_eq!(live(&cluster, ROWS), before);
    // A change of the last digit is another one than that which was approved.
    let digest = async |n: &str| {
        let statement = json!([{"sql": "update app.exact set n = $1 where id = 1", "params": [n]}]);
        let with = change(json!({"tables": ["app.exact"], "statements": statement, "dry_run": true}));
        rig.run_as("look", "postgres.change", with).await.expect("looks").outputs["digest"].clone()
    };
    assert_ne!(digest("1.0000000000000000000000001").await, digest("1.0000000000000000000000002").await);
}

#[tokio::test]
async fn a_change_that_reaches_too_far_changes_nothing() {
    let (rig, cluster) = setting();
    let before = (live(&cluster, PAYMENTS), live(&cluster, DIGEST));
    let attempt = async |more: Value| {
        let error = rig.run("postgres.change", change(more)).await.expect_err("reaches too far");
        assert_eq!((live(&cluster, PAYMENTS), live(&cluster, DIGEST)), before, "{error}");
        error
    };
    let one = |sql: &str| json!([{"sql": sql}]);
    let error = attempt(json!({"statements": one("update app.payments set amount = 0")})).await;
    assert_eq!(error.code, codes::LB1820, "{error}");
    assert_eq!(error.message, "more than 10 rows would be changed (`max_rows`)");
    let error = attempt(json!({"statements": one("select setval('app.payments_id_seq', 1)")})).await;
    assert_eq!(error.code, codes::LB1273, "{error}");
    assert_eq!(live(&cluster, "select last_value from app.payments_id_seq"), "100");
    // A cascade into payments, and a trigger that writes mails.
    let error =
        attempt(json!({"tables": ["app.people"], "statements": one("delete from app.people where id = 50")}))
            .await;
    assert_eq!(error.code, codes::LB1821);
    assert!(error.message.contains("app.payments"), "{error}");
    let error = attempt(json!({"tables": ["app.people"], "statements": one("update app.people set name = 'x' where id = 50")})).await;
    assert!(error.message.contains("app.mails"), "{error}");
    let rule = json!([{"name": "none is lost", "sql": "select count(*) as n from app.payments", "expect": ["rows[0].n == before[0].n"]}]);
    let error =
        attempt(json!({"statements": one("delete from app.payments where id = 1"), "invariants": rule}))
            .await;
    assert_eq!((error.code, error.checks.len()), (codes::LB1822, 1), "{error}");
    let error = attempt(json!({"statements": one("commit")})).await;
    assert_eq!(error.code, codes::LB1273, "{error}");
    live(&cluster, "create function app.empty() returns int language sql as 'truncate app.mails; select 1'");
    let error = attempt(json!({"statements": one("select app.empty()")})).await;
    assert_eq!(error.code, codes::LB1821, "{error}");
    let error = attempt(json!({"tables": ["app.mails"], "statements": one("delete from app.mails")})).await;
    assert_eq!(error.code, codes::LB1825, "{error}");
    assert_eq!(live(&cluster, "select to_regnamespace('lifeboat') is null"), "t");
    // The record of earlier changes is none of the tables that are named.
    let ten = json!({"statements": one("update app.payments set amount = 0 where id <= 10")});
    rig.run("postgres.change", change(ten.clone()))
        .await
        .expect("as many as allowed, rows that stay the same not counted");
    let forget =
        change(json!({"statements": one("delete from lifeboat.changed_rows"), "idempotency_key": "forget"}));
    let error = rig.run("postgres.change", forget).await.expect_err("is no table that is named");
    assert!(error.message.contains("lifeboat.changed_rows"), "{error}");
}

/// Holds a lock on people so that a step waits in the middle of its transaction, and then ends the step's session, as a
/// kill of Lifeboat or of the server's process does.
async fn cut_off(rig: &Rig, cluster: &Cluster, kind: &str, with: Value) -> StepError {
    let psql = |sql: &str| {
        let mut command = cluster.place().command("psql");
        command.args(["-X", "-At", "-U", "postgres", "-d", "live", "-h"]).arg(&cluster.socket_dir);
        command.args(["-p", &cluster.port.to_string(), "-c", sql]).stdout(std::process::Stdio::piped());
        command.spawn().expect("psql starts")
    };
    let mut holder = psql("begin; lock table app.people in share mode; select pg_sleep(3600)");
    support::postgres::wait_until("the lock is held", || {
        live(
            cluster,
            "select count(*) from pg_locks where mode = 'ShareLock' and relation = 'app.people'::regclass",
        ) == "1"
    });
    let end = "select count(pg_terminate_backend(a.pid)) from pg_stat_activity a
        where application_name = 'lifeboat' and exists (select from pg_locks l where l.pid = a.pid and not l.granted)";
    let ending = async {
        loop {
            let ended = psql(end).wait_with_output().expect("psql ends").stdout;
            if ended.starts_with(b"1") {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let (result, ()) = tokio::join!(rig.run(kind, with), ending);
    holder.kill().unwrap();
    holder.wait().unwrap();
    live(
        cluster,
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where query like '%pg_sleep(3600)%' and pid <> pg_backend_pid()",
    );
    result.expect_err("the session was ended")
}

#[tokio::test]
async fn a_session_that_ends_in_the_middle_has_written_nothing_and_the_next_attempt_does_it_all() {
    let (rig, cluster) = setting();
    damage(&cluster);
    let before = live(&cluster, DIGEST);
    let more = with(json!({"lock_timeout": "20m"}));
    let error = cut_off(&rig, &cluster, "postgres.recover_table", more.clone()).await;
    assert_ne!(error.kind, lifeboat_engine::model::outcome::FailureKind::Permanent, "{error}");
    assert_eq!(live(&cluster, DIGEST), before);
    let Probe::NotDone = rig.probe("postgres.recover_table", more.clone()).await.expect("asks") else {
        panic!("nothing was committed")
    };
    let done = rig.run("postgres.recover_table", more).await.expect("recovers");
    assert_eq!(done.outputs["inserted"], json!(20));

    let statement = json!([{"sql": "update app.people set plan = 1 where id = 20"}]);
    let with = change(
        json!({"tables": ["app.people", "app.mails2"], "statements": statement, "lock_timeout": "20m"}),
    );
    live(&cluster, "drop trigger mail on app.people; create table app.mails2 (id int primary key)");
    let before = live(&cluster, DIGEST);
    let error = cut_off(&rig, &cluster, "postgres.change", with.clone()).await;
    assert_ne!(error.kind, lifeboat_engine::model::outcome::FailureKind::Permanent, "{error}");
    assert_eq!(live(&cluster, DIGEST), before);
    let done = rig.run("postgres.change", with).await.expect("changes");
    assert!(done.outputs["rows"].as_u64().unwrap() <= 1);
}
