//! MariaDB servers of a run: made, asked, stopped and started.

use crate::support::mariadb::{Mariadb, open_to_server, sql_at};
use crate::support::rig::Rig;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::Probe;
use serde_json::{Value, json};

/// A rig whose directories the user of the servers may enter.
fn rig() -> Rig {
    let rig = Rig::drill();
    open_to_server(rig.dir());
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_reads_keeps_types_and_judges() {
    let mut rig = rig();
    let db = Mariadb::start(&rig.dir().join("db"), 1);
    db.sql(
        "create database shop; use shop; create table t (id int primary key, price decimal(9,2), at timestamp(3), \
         raw varbinary(9), note text); \
         insert into t values (1, 9.50, '2026-11-21 03:12:00.125', x'00ff', 'it''s'), (2, null, null, null, null); \
         create user ann@localhost identified by 'p\"\\\\#w'; grant all on *.* to ann@localhost",
    );
    rig.set_resource("db", db.resource());
    let ask = |sql: &str, params: Value, expect: Value| {
        rig.run(
            "mariadb.query",
            json!({ "server": "db", "database": "shop", "sql": sql, "params": params, "expect": expect }),
        )
    };
    let done =
        ask("select * from t where id = ? or note = ?", json!([1, "x' or 1=1"]), json!(["row_count == 1"]))
            .await;
    let row = &done.unwrap().outputs["rows"][0];
    assert_eq!(row["price"], json!("9.50"));
    assert_eq!((&row["id"], &row["raw"], &row["note"]), (&json!(1), &json!("0x00ff"), &json!("it's")));
    assert!(row["at"].as_str().unwrap().ends_with('Z'), "{row}");

    let wrong = ask("select count(*) as n from t", json!([]), json!(["rows[0].n == 3"])).await.unwrap_err();
    assert_eq!(wrong.code.id, "LB2010");
    for sql in ["delete from t", "select * from t into outfile '/tmp/x'"] {
        assert_eq!(ask(sql, json!([]), json!([])).await.unwrap_err().code.id, "LB2011", "{sql}");
    }
    // A reading statement that writes after all is refused by the server.
    db.sql("create sequence shop.s");
    let refused = ask("select nextval(s)", json!([]), json!([])).await.unwrap_err();
    assert!(refused.code.id == "LB2004" && refused.message.contains("READ ONLY"), "{refused}");
    assert_eq!(db.sql("select count(*) from shop.t"), "2");
    let slow = rig.run(
        "mariadb.query",
        json!({ "server": "db", "sql": "select sleep(20)", "statement_timeout": "200ms" }),
    );
    let slow = slow.await;
    assert!(slow.is_err() || slow.unwrap().outputs["rows"][0]["sleep(20)"] == json!(1), "it was cut off");

    let mut rig = rig.secret(SecretRef::Env("PW".into()), "p\"\\#w");
    let mut resource = db.resource();
    resource["user"] = json!("ann");
    resource["password"] = json!({ "env": "PW" });
    rig.set_resource("db", resource);
    let who = rig.run("mariadb.query", json!({ "server": "db", "sql": "select current_user() as u" })).await;
    assert_eq!(who.unwrap().outputs["rows"][0]["u"], json!("ann@localhost"));
    let rig = rig.secret(SecretRef::Env("PW".into()), "wrong");
    let refused = rig.run("mariadb.query", json!({ "server": "db", "sql": "select 1" })).await.unwrap_err();
    assert!(refused.code.id == "LB2001" && !refused.message.contains("wrong'"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_cut_off_stopped_started_and_found_again() {
    let mut rig = rig();
    let done = rig.run_as("clone", "mariadb.clone", json!({ "dir": rig.dir() })).await.unwrap();
    let socket = std::path::PathBuf::from(done.outputs["socket"].as_str().unwrap());
    let tmp = sql_at(&socket, "select @@tmpdir").unwrap();
    assert!(
        tmp.starts_with(rig.dir().to_str().unwrap()),
        "it would remove temporary tables of others in {tmp}"
    );
    let settings =
        sql_at(&socket, "select @@skip_networking, @@event_scheduler, @@log_bin, @@gtid_binlog_pos");
    assert_eq!(settings.unwrap().trim_end(), "1\tOFF\t1");
    let resource = done.resource.clone().unwrap();
    assert_eq!(resource["kind"], json!("mariadb"));
    rig.set_resource("from:clone", resource);

    sql_at(&socket, "create database kept").unwrap();
    let again = rig.run_as("clone", "mariadb.clone", json!({ "dir": rig.dir() })).await.unwrap();
    assert_eq!(again.outputs, done.outputs, "an attempt whose end was lost is found");
    assert_eq!(sql_at(&socket, "show databases like 'kept'").unwrap(), "kept");
    let probe = rig.context("clone", "mariadb.clone", json!({ "dir": rig.dir() }));
    let kind = lifeboat_steps::registry();
    assert!(matches!(kind.kind("mariadb.clone").unwrap().probe(&probe).await.unwrap(), Probe::Done(_)));

    let on = json!({ "server": "from:clone" });
    assert_eq!(rig.run("mariadb.stop", on.clone()).await.unwrap().outputs["stopped"], json!(true));
    assert_eq!(rig.run("mariadb.stop", on.clone()).await.unwrap().outputs["stopped"], json!(false));
    let down =
        rig.run("mariadb.query", json!({ "server": "from:clone", "sql": "select 1" })).await.unwrap_err();
    assert_eq!(down.code.id, "LB2000");
    assert_eq!(rig.run("mariadb.start", on.clone()).await.unwrap().outputs["started"], json!(true));
    assert_eq!(rig.run("mariadb.start", on.clone()).await.unwrap().outputs["started"], json!(false));
    let settings = sql_at(&socket, "select @@skip_networking, @@event_scheduler; show databases like 'kept'");
    assert_eq!(settings.unwrap(), "1\tOFF\nkept");

    // Where it is not known any more how it was cut off, it is not let loose.
    rig.run("mariadb.stop", on.clone()).await.unwrap();
    let data_dir = std::path::PathBuf::from(done.outputs["data_dir"].as_str().unwrap());
    std::fs::write(data_dir.with_file_name("lifeboat-isolated.json"), "").unwrap();
    let refused = rig.run("mariadb.start", on).await.unwrap_err();
    assert!(refused.code.id == "LB2008" && refused.message.contains("lifeboat-isolated.json"), "{refused}");
    assert!(!socket.exists() || sql_at(&socket, "select 1").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_only_touched_if_it_is_the_one_described() {
    let mut rig = rig();
    let (one, other) = (Mariadb::start(&rig.dir().join("one"), 1), rig.dir().join("other"));
    std::fs::create_dir(&other).unwrap();
    rig.set_resource(
        "db",
        json!({ "kind": "mariadb", "socket": one.socket(), "data_dir": other, "os_user": "mysql" }),
    );
    // Nothing runs on its directory, and what answers at its socket is somebody else's.
    assert_eq!(
        rig.run("mariadb.stop", json!({ "server": "db" })).await.unwrap().outputs["stopped"],
        json!(false)
    );
    assert_eq!(one.sql("select 1"), "1");
    let mut managed = one.resource();
    managed["service"] = json!({ "manager": "systemd", "unit": "mariadb" });
    rig.set_resource("db", managed);
    assert_eq!(rig.run("mariadb.stop", json!({ "server": "db" })).await.unwrap_err().code.id, "LB2007");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_the_data_is_found() {
    let mut rig = rig();
    let db = Mariadb::start(&rig.dir().join("db"), 1);
    rig.set_resource("db", db.resource());
    let verify = |more: Value| {
        let mut with = json!({ "server": "db" });
        with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rig.run("mariadb.verify", with)
    };
    let empty = verify(json!({})).await.unwrap_err();
    assert!(empty.code.id == "LB2012" && empty.message.contains("none but its own"), "{empty}");
    db.sql(
        "create database shop; use shop; create table a (id int primary key, x int, y int, unique (x, y)); \
         create table b (id int primary key, x int, y int, foreign key both_of (x, y) references a (x, y)); \
         insert into a values (1, 1, 1); insert into b values (1, 1, 1), (2, null, 9); \
         create view v as select id from a; create user ann@localhost; create definer = ann@localhost procedure p() select 1",
    );
    let query = json!({ "name": "rows", "database": "shop", "sql": "select count(*) as n from a", "expect": ["rows[0].n == 1"] });
    let done = verify(json!({ "queries": [query] })).await.unwrap();
    assert_eq!(done.outputs["databases"], json!(["shop"]));
    assert!(done.checks.len() >= 6 && done.checks.iter().all(|check| check.passed), "{:?}", done.checks);

    db.sql("set foreign_key_checks = 0; use shop; insert into b values (3, 7, 7); drop user ann@localhost; alter table a rename column id to number");
    let error = verify(json!({})).await.unwrap_err();
    let failed: Vec<_> = error.checks.iter().filter(|check| !check.passed).collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    for part in ["1 rows without their parent", "ann@localhost", "shop.v"] {
        assert!(error.message.contains(part), "no {part}: {error}");
    }
    let missing = verify(json!({ "databases": ["shop", "gone"] })).await.unwrap_err();
    assert!(missing.message.contains("missing: gone"), "{missing}");
    let wrong = json!({ "name": "n", "sql": "select nonsense", "expect": ["row_count == 1"] });
    let error = verify(json!({ "databases": ["mysql"], "check_tables": false, "queries": [wrong] }))
        .await
        .unwrap_err();
    assert!(error.message.contains("n: the statement runs"), "{error}");
}
