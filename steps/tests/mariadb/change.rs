//! Changes of rows on real MariaDB servers.

use crate::support::mariadb::{Mariadb, open_to_server};
use crate::support::rig::Rig;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::{Probe, StepError};
use serde_json::{Value, json};

const DATA: &str = "
    create database shop character set utf8mb4; use shop;
    create table members (id int primary key auto_increment, name varchar(40)) engine=InnoDB;
    create table payments (id int primary key auto_increment, member int, amount decimal(30,20), note text,
      foreign key payer (member) references members (id) on delete cascade) engine=InnoDB;
    create table audit (id int primary key auto_increment, what text) engine=InnoDB;
    insert into members (name) select concat('M', seq) from seq_1_to_30;
    insert into payments (member, amount) select seq, seq from seq_1_to_30;
    set session sql_mode = '';
    create table kinds (a varchar(20) character set latin1, b binary(4), n decimal(40,20), f float, d double, j json, z datetime(6),
      day date, t timestamp(3) null, e enum('x','y'), s set('p','q','r'), bits bit(33), u bigint unsigned, blobs blob, txt text,
      g geometry, id uuid, ip inet6, y year, total decimal(41,20) generated always as (n * 2) stored, primary key (a, b));
    insert into kinds values (x'e9', x'00ff0010', 0.12345678901234567890, 0.1, 0.1 + 0.2e0, '{\"a\":  1}', '0000-00-00 00:00:00',
      '2026-02-00', '2026-03-29 01:30:00.125', 'y', 'p,r', b'100000000000000000000000000000001', 18446744073709551615, x'00ff5c27',
      'it''s \\\\ \u{1f6df}', point(1, 2), '123e4567-e89b-12d3-a456-426655440000', '::1', 2026, default);
    insert into kinds (a, b, j) values ('B', 'b', '[]'), ('C', 'c', null);
";

pub(super) const PAYMENTS: &str = "select md5(group_concat(concat_ws('|', id, member, amount, ifnull(note, '~')) order by id)) from shop.payments";
const MEMBERS: &str = "select md5(group_concat(concat_ws('|', id, name) order by id)) from shop.members";
const KINDS: &str = "select hex(a), hex(b), n, f + 0e0, d, j, z, day, t, e, s + 0, u, hex(blobs), hex(txt), hex(g), bits + 0, id, ip, y, total \
    from shop.kinds order by a";

pub(super) fn setting() -> (Rig, Mariadb) {
    let mut rig = Rig::drill();
    open_to_server(rig.dir());
    let db = Mariadb::start(&rig.dir().join("db"), 7);
    db.sql(DATA);
    rig.set_resource("db", db.resource());
    (rig, db)
}

pub(super) fn change(more: Value) -> Value {
    let mut with = json!({ "server": "db", "database": "shop", "tables": ["payments"], "max_rows": 10 });
    with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with
}

pub(super) fn correction() -> Value {
    json!({ "statements": [
        { "sql": "update payments set amount = ? where id in (3, 4)", "params": ["2.50000000000000000001"] },
        { "sql": "delete from payments where id = 5" },
        { "sql": "insert into payments (member, amount) values (7, -1.25)" },
        { "sql": "update payments set amount = amount where id = 9" },
    ], "invariants": [{
        "name": "payments", "sql": "select count(*) as n from payments", "expect": ["rows[0].n == before[0].n"],
    }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approved_change_is_made_once_and_taken_back_row_by_row() {
    let (rig, db) = setting();
    let before = db.sql(PAYMENTS);
    let mut dry = change(correction());
    dry["dry_run"] = json!(true);
    let looked = rig.run_as("look", "mariadb.change", dry).await.expect("looks");
    assert_eq!(looked.outputs["rows"], json!(4), "{looked:?}");
    let expected = json!([{ "table": "shop.payments", "inserted": 1, "updated": 2, "deleted": 1 }]);
    assert_eq!(looked.outputs["tables"], expected);
    let first = &looked.outputs["difference"][0];
    assert_eq!(
        (&first["key"], &first["before"]["amount"]),
        (&json!({"id": 3}), &json!("3.00000000000000000000"))
    );
    assert_eq!(first["after"], json!({ "amount": "2.50000000000000000001" }));
    assert_eq!(looked.warnings, Vec::<String>::new());
    assert_eq!(db.sql(PAYMENTS), before, "nothing was changed");
    assert_eq!(db.sql("show databases like 'lifeboat'"), "", "nor made");

    let mut with = change(correction());
    with["approved"] = json!("0123");
    let error = rig.run("mariadb.change", with.clone()).await.expect_err("another difference");
    assert_eq!(error.code.id, "LB2063", "{error}");
    assert_eq!(db.sql(PAYMENTS), before);
    with["approved"] = looked.outputs["digest"].clone();
    let done = rig.run("mariadb.change", with.clone()).await.expect("changes");
    assert_eq!(done.outputs["digest"], looked.outputs["digest"]);
    assert_eq!(db.sql("select amount from shop.payments where id = 3"), "2.50000000000000000001");
    let after = db.sql(PAYMENTS);
    assert_ne!(after, before);

    // The end of the step was not written down before a crash.
    let Probe::Done(again) = rig.probe("mariadb.change", with.clone()).await.expect("asks") else {
        panic!("it was committed")
    };
    assert_eq!(again.outputs, done.outputs);
    rig.run("mariadb.change", with.clone()).await.expect("is made once");
    assert_eq!(db.sql(PAYMENTS), after);

    // Somebody has changed one of the rows since.
    db.sql("update shop.payments set amount = 9 where id = 4");
    let changed = db.sql(PAYMENTS);
    let error = rig.undo("mariadb.change", with.clone()).await.expect_err("changed since");
    assert_eq!(error.code.id, "LB2064", "{error}");
    assert_eq!(db.sql(PAYMENTS), changed, "all or nothing");
    db.sql("update shop.payments set amount = 2.50000000000000000001 where id = 4");
    rig.undo("mariadb.change", with.clone()).await.expect("undoes");
    assert_eq!(db.sql(PAYMENTS), before);
    rig.undo("mariadb.change", with.clone()).await.expect("again is no error");
    let error = rig.run("mariadb.change", with).await.expect_err("not a second time");
    assert_eq!(error.code.id, "LB2066", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reverse_script_takes_every_type_back_byte_for_byte() {
    let (rig, db) = setting();
    let before = (db.sql(KINDS), db.sql(PAYMENTS), db.sql(MEMBERS));
    let with = change(json!({ "tables": ["kinds", "shop.members", "payments"], "statements": [
        { "sql": "delete from kinds where a = ?", "params": ["\u{e9}"] },
        { "sql": "update kinds set j = '{}', f = 3.3, txt = 'x' where a = 'B'" },
        { "sql": "delete from members where id = 12" },
    ], "idempotency_key": "ticket 4711" }));
    let done = rig.run("mariadb.change", with.clone()).await.expect("changes");
    // The payment of member 12 went with the cascade.
    assert_eq!((&done.outputs["rows"], &done.warnings), (&json!(4), &Vec::new()), "{done:?}");
    assert_ne!(db.sql(KINDS), before.0);
    // Another run finds that this was done.
    let mut other = Rig::drill();
    other.set_resource("db", db.resource());
    let again = other.run("mariadb.change", with).await.expect("is made once");
    assert!(again.warnings[0].contains("made before"), "{:?}", again.warnings);

    let script = std::path::Path::new(done.outputs["reverse"].as_str().unwrap());
    let changed = db.sql(KINDS);
    db.sql("update shop.kinds set y = 2001 where a = 'B'");
    let stopped = db.try_file(script).expect_err("changed since");
    assert!(stopped.contains("a row has been changed since"), "{stopped}");
    db.sql("update shop.kinds set y = null where a = 'B'");
    assert_eq!(db.sql(KINDS), changed, "all or nothing");
    db.try_file(script).expect("takes it back");
    assert_eq!((db.sql(KINDS), db.sql(PAYMENTS), db.sql(MEMBERS)), before);
    assert_eq!(db.sql("select undone_at is not null from lifeboat.changes"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_reaches_too_far_changes_nothing() {
    let (rig, db) = setting();
    let before = (db.sql(PAYMENTS), db.sql(MEMBERS));
    let attempt = async |more: Value| -> StepError {
        let error = rig.run("mariadb.change", change(more)).await.expect_err("reaches too far");
        assert_eq!((db.sql(PAYMENTS), db.sql(MEMBERS)), before, "{error}");
        error
    };
    let one = |sql: &str| json!([{ "sql": sql }]);
    let error = attempt(json!({ "statements": one("update payments set amount = 0") })).await;
    assert_eq!(
        (error.code.id, error.message.as_str()),
        ("LB2060", "more than 10 rows would be changed (`max_rows`)")
    );
    let error =
        attempt(json!({ "statements": one("delete from members where id = 3"), "tables": ["members"] }))
            .await;
    assert!(error.code.id == "LB2061" && error.message.contains("shop.payments (foreign key"), "{error}");
    let error = attempt(json!({ "statements": one("insert into audit (what) values ('x')") })).await;
    assert_eq!(error.code.id, "LB2061", "{error}");
    let rule = json!([{ "name": "none is lost", "sql": "select count(*) as n from payments", "expect": ["rows[0].n == before[0].n"] }]);
    let error =
        attempt(json!({ "statements": one("delete from payments where id = 1"), "invariants": rule })).await;
    assert_eq!((error.code.id, error.checks.len()), ("LB2062", 1), "{error}");
    let error = attempt(json!({ "statements": one("commit") })).await;
    assert_eq!(error.code.id, "LB2068", "{error}");
    let error = attempt(json!({ "statements": one("update payments set amount = ? where id = ?") })).await;
    assert!(error.kind == FailureKind::Permanent && error.message.contains("2 parameters"), "{error}");
    let error =
        attempt(json!({ "statements": one("delete from payments where id = 1"), "max_table_rows": 29 }))
            .await;
    assert!(error.code.id == "LB2065" && error.message.contains("29 rows"), "{error}");

    db.sql("create table shop.bare (a int) engine=InnoDB; create table shop.old (a int primary key) engine=MyISAM; \
            create view shop.seen as select * from shop.members");
    for (table, why) in [
        ("bare", "primary key"),
        ("old", "MyISAM"),
        ("seen", "no plain table"),
        ("none", "there is no table"),
        ("lifeboat.changes", "there is no table"),
    ] {
        let error = attempt(json!({ "statements": one("select 1"), "tables": [table] })).await;
        assert!(error.code.id == "LB2065" && error.message.contains(why), "{error}");
    }
    // A trigger: into a table that keeps what it got, and into one that is not named.
    db.sql("create trigger shop.note after update on shop.payments for each row insert into shop.old values (new.id)");
    let update = one("update payments set amount = 0 where id = 1");
    let error = attempt(json!({ "statements": update.clone() })).await;
    assert!(error.code.id == "LB2065" && error.message.contains("`old`"), "{error}");
    assert_eq!(db.sql("select count(*) from shop.old"), "0");
    db.sql("drop table shop.old; drop trigger shop.note; create trigger shop.note after update on shop.payments for each row insert into shop.audit (what) values (new.id)");
    let error = attempt(json!({ "statements": update.clone() })).await;
    assert!(error.code.id == "LB2061" && error.message.contains("trigger `note`"), "{error}");
    assert_eq!(db.sql("select count(*) from shop.audit; show databases like 'lifeboat'"), "0");
    // Named, it is part of the change; that it would run again on the way back is told.
    let done = rig
        .run("mariadb.change", change(json!({ "statements": update, "tables": ["payments", "audit"] })))
        .await
        .unwrap();
    assert_eq!((&done.outputs["rows"], &done.outputs["reverse"]), (&json!(2), &json!("")));
    assert!(done.warnings[0].contains("cannot be taken back by a script"), "{:?}", done.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_changed_twice_is_refused_and_one_statement_for_both_is_not() {
    let (rig, db) = setting();
    let before = db.sql(PAYMENTS);
    let statements = |sqls: &[&str]| {
        let all: Vec<Value> = sqls.iter().map(|sql| json!({ "sql": sql })).collect();
        change(json!({ "statements": all }))
    };
    for twice in [
        ["update payments set amount = 0 where id = 1", "update payments set note = 'x' where id = 1"],
        ["insert into payments (id, member) values (99, 1)", "update payments set note = 'x' where id = 99"],
        ["update payments set note = 'x' where id = 1", "update payments set note = null where id = 1"],
    ] {
        let error = rig.run("mariadb.change", statements(&twice)).await.expect_err("it counts twice");
        assert_eq!(error.code.id, "LB2061", "{error}");
        assert!(error.help.as_deref().unwrap_or_default().contains("change each row once only"), "{error:?}");
        assert_eq!(db.sql(PAYMENTS), before);
    }
    let once = statements(&["update payments set amount = 0, note = 'x' where id = 1"]);
    assert_eq!(rig.run("mariadb.change", once).await.expect("changes").outputs["rows"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_the_right_to_see_the_count_is_told_which_one_it_needs() {
    let (mut rig, db) = setting();
    let before = db.sql(PAYMENTS);
    db.sql("create user clerk@localhost; grant all on shop.* to clerk@localhost; grant all on lifeboat.* to clerk@localhost");
    let mut resource = db.resource();
    resource["user"] = json!("clerk");
    rig.set_resource("db", resource);
    let error = rig.run("mariadb.change", change(correction())).await.expect_err("it may not see the count");
    assert_eq!((error.code.id, error.kind), ("LB2061", FailureKind::Permanent), "{error}");
    assert!(error.help.as_deref().unwrap_or_default().contains("grant process on *.*"), "{error:?}");
    assert_eq!(db.sql(PAYMENTS), before);
    db.sql("grant process on *.* to clerk@localhost");
    assert_eq!(
        rig.run("mariadb.change", change(correction())).await.expect("changes").outputs["rows"],
        json!(4)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn long_work_says_how_far_it_is() {
    let (rig, db) = setting();
    db.sql("use shop; create table many (id int primary key, n int) engine=InnoDB; insert into many select seq, 0 from seq_1_to_12000");
    let with = change(json!({
        "tables": ["many"], "max_rows": 1200, "statements": [{ "sql": "update many set n = 1 where id > 10800" }],
    }));
    rig.run("mariadb.change", with).await.expect("changes");
    let reported = rig.reported();
    let of = |note: &str| -> Vec<(u64, Option<u64>)> {
        let all = reported.progress.iter().filter(|one| one.note == note);
        all.map(|one| (one.done, one.total)).collect()
    };
    assert_eq!(of("locking tables"), [(0, Some(1))]);
    assert_eq!(of("running statements"), [(0, Some(1))]);
    let all = Some(12_000);
    assert_eq!(of("comparing rows"), [(5000, all), (10_000, all), (12_000, all)]);
    let rows = Some(1200);
    assert_eq!(of("trying the way back"), [(0, rows), (500, rows), (1000, rows)]);
    assert_eq!(of("comparing rows with before"), [(5000, all), (10_000, all), (12_000, all)]);
    assert_eq!(of("writing down what was changed"), [(0, rows), (500, rows), (1000, rows)]);
    assert_eq!(of("committing"), [(1200, rows)]);
}

/// Waits until a query that counts or looks for something finds it.
pub(super) async fn poll(db: &Mariadb, sql: &str) -> String {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let found = db.sql(sql);
        if found != "0" {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "{sql}");
        // Asked more often than every 100 ms, the server says of transactions what it said before.
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
}

/// Who sleeps in a session of [`Mariadb::session`].
pub(super) const SLEEPING: &str = "select ifnull(max(id), 0) from information_schema.processlist \
    where info = 'select sleep(300)' and command = 'Query'";

/// Runs a change whose rows somebody else has changed and not yet committed, and then ends its session, or the other's wait.
async fn while_it_waits(rig: &Rig, db: &Mariadb, with: Value, whose: &str) -> Result<Value, StepError> {
    let theirs =
        "start transaction; update shop.payments set note = 'theirs' where id = 1; select sleep(300); commit";
    let mut holder = db.session(theirs);
    let id = poll(db, SLEEPING).await;
    let ending = async {
        let waiting = "select ifnull(max(trx_mysql_thread_id), 0) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'";
        let ours = poll(db, waiting).await;
        db.sql(&if whose == "ours" { format!("kill {ours}") } else { format!("kill query {id}") });
    };
    let (result, ()) = tokio::join!(rig.run("mariadb.change", with), ending);
    holder.kill().expect("our own child");
    holder.wait().expect("our own child");
    result.map(|done| json!(done.outputs))
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_are_waited_for_and_a_session_that_ends_in_the_middle_has_written_nothing() {
    let (rig, mut db) = setting();
    let before = db.sql(PAYMENTS);
    let mut with = change(correction());
    with["lock_timeout"] = json!("300s");
    let error = while_it_waits(&rig, &db, with.clone(), "ours").await.expect_err("the session was ended");
    assert_ne!(error.kind, FailureKind::Permanent, "{error}");
    assert!(matches!(rig.probe("mariadb.change", with.clone()).await, Ok(Probe::NotDone)));
    // A server that dies takes the other's transaction back, too.
    db.kill();
    db.up(&[]);
    assert_eq!(db.sql(PAYMENTS), before);
    let done = while_it_waits(&rig, &db, with, "theirs").await.expect("changes");
    assert_eq!(done["rows"], json!(4), "theirs is none of it: {done}");
    assert_eq!(db.sql("select note from shop.payments where id = 1"), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_at_the_commit_is_asked_whether_it_was_made() {
    let (rig, mut db) = setting();
    // The record exists, so that nothing but the commit waits for the lock.
    rig.run_as(
        "first",
        "mariadb.change",
        change(json!({ "statements": [{ "sql": "delete from payments where id = 30" }] })),
    )
    .await
    .expect("changes");
    db.down();
    db.up(&["--innodb-flush-log-at-trx-commit=1"]);
    let before = db.sql(PAYMENTS);
    let with = change(correction());
    let mut holder = db.session("backup stage start; backup stage flush; backup stage block_ddl; backup stage block_commit; select sleep(300)");
    poll(&db, SLEEPING).await;
    let committing = "select count(*) from information_schema.processlist where info = 'commit' and state like 'Waiting for backup%'";
    let dying = async {
        poll(&db, committing).await;
        db.kill();
    };
    let (result, ()) = tokio::join!(rig.run("mariadb.change", with.clone()), dying);
    holder.wait().expect("our own child");
    let error = result.expect_err("the server is gone");
    assert_eq!(error.kind, FailureKind::Uncertain, "{error}");
    db.up(&["--innodb-flush-log-at-trx-commit=1"]);
    assert_eq!(db.sql(PAYMENTS), before);
    assert!(matches!(rig.probe("mariadb.change", with.clone()).await, Ok(Probe::NotDone)));
    let done = rig.run("mariadb.change", with.clone()).await.expect("changes");
    let after = db.sql(PAYMENTS);
    // What was committed outlives the server, and is not made again.
    db.kill();
    db.up(&[]);
    assert_eq!(rig.run("mariadb.change", with).await.expect("was made").outputs, done.outputs);
    assert_eq!(db.sql(PAYMENTS), after);
}
