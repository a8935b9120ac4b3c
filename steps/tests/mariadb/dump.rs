//! Dumps of real MariaDB servers, and their restore into fresh ones.

use std::path::{Path, PathBuf};

use crate::support::mariadb::{Mariadb, open_to_server};
use crate::support::rig::Rig;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::{Probe, StepError};
use serde_json::{Value, json};

/// A source with data of every sort, an empty target, and a store.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) source: Mariadb,
    pub(super) target: Mariadb,
}

const DATA: &str = "
    create database shop character set utf8mb4; use shop;
    create table members (id int primary key auto_increment, name varchar(60), photo blob, at timestamp not null default current_timestamp());
    create table orders (id int primary key, member int, total decimal(9,2), foreign key buyer (member) references members (id));
    insert into members (name, photo) values ('Ann', x'00ff5c27'), ('Bj\u{f6}rn \u{1f6df}', null), ('a\\nb;', x''), ('USE `shop`;', null);
    insert into orders values (1, 1, 9.50), (2, 2, 3), (3, null, 0);
    create view rich as select * from members where id in (select member from orders where total > 5);
    create procedure p() select count(*) from members;
    create function f(n int) returns int deterministic return n + 1;
    create trigger stamp before insert on orders for each row set new.total = ifnull(new.total, 0);
    create event nightly on schedule every 1 day do delete from shop.orders;
    create user app@localhost identified by 'pw'; grant select, insert on shop.* to app@localhost;
    create definer = app@localhost view mine as select 1 as one;
    create database `odd``name`; create table `odd``name`.`t.x` (id int primary key); insert into `odd``name`.`t.x` values (7);
";

impl World {
    pub(super) fn new() -> Self {
        let mut rig = Rig::drill();
        open_to_server(rig.dir());
        let source = Mariadb::start(&rig.dir().join("source"), 11);
        source.sql(DATA);
        let target = Mariadb::start(&rig.dir().join("target"), 22);
        let store = format!("dir://{}", rig.dir().join("store").display());
        rig.set_resource("backups", json!({ "kind": "store", "url": store }));
        rig.set_resource("db", source.resource());
        rig.set_resource("target", target.resource());
        Self { rig, source, target }
    }

    pub(super) async fn dump(&self, step: &str, more: Value) -> Result<Done, StepError> {
        self.rig.run_as(step, "mariadb.dump", with(json!({ "server": "db", "store": "backups" }), more)).await
    }

    pub(super) async fn restore(&self, step: &str, more: Value) -> Result<Done, StepError> {
        let base = json!({ "server": "target", "store": "backups" });
        self.rig.run_as(step, "mariadb.restore_dump", with(base, more)).await
    }

    fn backup(&self, done: &Done) -> PathBuf {
        self.rig.dir().join("store/mariadb").join(done.outputs["backup"].as_str().unwrap())
    }
}

fn with(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

/// Replaces the SQL of a dump, with a marker that fits, so that only the content is another one.
fn tamper(backup: &Path, change: impl FnOnce(String) -> String) {
    tamper_with(backup, "databases.sql.zst", change);
}

fn tamper_with(backup: &Path, name: &str, change: impl FnOnce(String) -> String) {
    use sha2::{Digest, Sha256};
    let file = backup.join(name);
    let sql = zstd::decode_all(std::fs::File::open(&file).unwrap()).unwrap();
    let packed = zstd::encode_all(change(String::from_utf8(sql).unwrap()).as_bytes(), 3).unwrap();
    let marker = backup.join("lifeboat.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&marker).unwrap()).unwrap();
    let object = text["objects"].as_array_mut().unwrap().iter_mut().find(|it| it["name"] == name);
    let object = object.unwrap();
    object["size"] = json!(packed.len());
    object["sha256"] = json!(lifeboat_engine::plan::hex(&Sha256::digest(&packed)));
    std::fs::write(file, packed).unwrap();
    std::fs::write(marker, serde_json::to_vec(&text).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_is_what_was_dumped() {
    let world = World::new();
    let before = jiff::Timestamp::now();
    let done = world.dump("dump", json!({})).await.unwrap();
    let taken: jiff::Timestamp = done.outputs["taken_at"].as_str().unwrap().parse().unwrap();
    assert!(taken >= before && taken <= jiff::Timestamp::now());
    assert_eq!((&done.outputs["tables"], &done.outputs["rows"]), (&json!(3), &json!(8)));
    assert_eq!(done.outputs["databases"], json!(["odd`name", "shop"]));
    let at = world.source.sql("show master status").replace('\t', ":");
    let position = &done.outputs["position"];
    assert!(
        at.starts_with(&format!("{}:{}", position["file"].as_str().unwrap(), position["offset"])),
        "{at}"
    );
    assert_eq!(done.outputs["gtid"], json!(world.source.sql("select @@gtid_binlog_pos")));
    assert_eq!(done.warnings, Vec::<String>::new());
    let again = world.dump("dump", json!({})).await.unwrap();
    assert_eq!(again.outputs, done.outputs, "a second attempt finds what the first has published");

    // What is committed afterwards is not in it.
    world.source.sql("insert into shop.members (name) values ('too late')");
    let restored = world.restore("restore", json!({})).await.unwrap();
    assert!(restored.checks.iter().all(|check| check.passed) && restored.checks.len() >= 4);
    assert_eq!(restored.outputs["rows"], json!(8));
    assert_eq!(restored.recovery_points[0].time, done.outputs["taken_at"].as_str().unwrap());
    let look = "select group_concat(concat_ws('|', id, name, hex(photo)) order by id) from shop.members";
    let expected = world.source.sql(&format!("{look} where name <> 'too late'"));
    assert_eq!(world.target.sql(look), expected);
    assert_eq!(
        world.target.sql("select * from `odd``name`.`t.x`; select shop.f(1); select one from shop.mine"),
        "7\n2\n1"
    );
    assert_eq!(
        world.target.sql("select @@gtid_binlog_pos"),
        "",
        "nothing of it is in the target's binary log"
    );
    let grants = "show grants for app@localhost";
    assert_eq!(world.target.sql(grants), world.source.sql(grants));
    let again = world.restore("restore", json!({})).await.unwrap();
    assert_eq!(again.outputs, restored.outputs);
    let kind = lifeboat_steps::registry();
    let probe = world.rig.context(
        "restore",
        "mariadb.restore_dump",
        json!({ "server": "target", "store": "backups" }),
    );
    assert!(matches!(
        kind.kind("mariadb.restore_dump").unwrap().probe(&probe).await.unwrap(),
        Probe::Done(_)
    ));
    let over = world.restore("over", json!({})).await.unwrap_err();
    assert_eq!(over.code.id, "LB2031");
    assert_eq!(world.target.sql(look), expected, "and nothing was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_under_another_name_and_programs_that_log_in_with_a_password() {
    let mut world = World::new();
    world.source.sql(
        "create user 'dumper'@'localhost' identified by 'a b\"c\\\\d#'; grant all on *.* to dumper@localhost",
    );
    world.rig = world.rig.secret(SecretRef::Env("PW".into()), "a b\"c\\d#");
    let mut resource = world.source.resource();
    resource["user"] = json!("dumper");
    resource["password"] = json!({ "env": "PW" });
    world.rig.set_resource("db", resource);
    world.source.sql("create table shop.old (id int) engine=MyISAM");
    let done = world.dump("dump", json!({ "databases": ["shop"], "users": false })).await.unwrap();
    assert!(done.warnings.iter().any(|warning| warning.contains("shop.old (MyISAM)")), "{:?}", done.warnings);
    assert!(done.warnings.iter().any(|warning| warning.contains("other databases")), "{:?}", done.warnings);

    let missing = world.restore("restore", json!({ "database": "copy" })).await.unwrap_err();
    assert!(missing.code.id == "LB2033" && missing.message.contains("app@localhost"), "{missing}");
    let done = world.restore("restore", json!({ "database": "copy", "users": "skip" })).await.unwrap();
    assert!(done.warnings.iter().any(|warning| warning.contains("app@localhost")), "{:?}", done.warnings);
    assert_eq!(world.target.sql("select count(*) from copy.members; show databases like 'shop'"), "4");
    world.rig.undo("mariadb.restore_dump", json!({ "server": "target", "store": "backups" })).await.unwrap();
    assert_eq!(world.target.sql("show databases like 'copy'"), "copy", "what another step has made stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_damaged_or_different_is_no_success_and_a_retry_begins_anew() {
    let world = World::new();
    let done = world.dump("dump", json!({})).await.unwrap();
    let backup = world.backup(&done);
    let file = backup.join("databases.sql.zst");
    let (whole, marker) =
        (std::fs::read(&file).unwrap(), std::fs::read(backup.join("lifeboat.json")).unwrap());
    let code = async |step: &str| world.restore(step, json!({})).await.unwrap_err().code.id;

    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(code("short").await, "LB1108");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, flipped).unwrap();
    assert!(["LB1108", "LB2032"].contains(&code("flipped").await));
    // A row fewer, a routine fewer, an orphan: each is found although the client sees no error.
    for (step, from, to) in [
        ("fewer", "(3,NULL,0.00)", ""),
        ("routine", "PROCEDURE `p`", "PROCEDURE `q`"),
        ("trigger", "trigger stamp", "trigger stump"),
        ("event", "EVENT `nightly`", "EVENT `nightmare`"),
        ("orphan", "(2,2,3.00)", "(2,77,3.00)"),
    ] {
        std::fs::write(&file, &whole).unwrap();
        std::fs::write(backup.join("lifeboat.json"), &marker).unwrap();
        tamper(&backup, |sql| {
            assert!(sql.contains(from), "{from}");
            sql.replace(from, to).replace(",\n;", ";")
        });
        // Each begins where the one before has failed: it has no right to what that one has made.
        world.target.sql("drop database if exists shop; drop database if exists `odd``name`");
        let error = world.restore(step, json!({})).await.unwrap_err();
        assert_eq!(error.code.id, "LB2033", "{step}: {error}");
    }
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(backup.join("lifeboat.json"), &marker).unwrap();
    world.target.sql("drop database if exists shop; drop database if exists `odd``name`");
    tamper(&backup, |sql| sql.replace("CREATE TABLE `orders`", "CREATE TABLE `orders` nonsense"));
    let stopped = world.restore("again", json!({})).await.unwrap_err();
    assert!(stopped.code.id == "LB2032" && stopped.message.contains("1064"), "{stopped}");
    assert_eq!(world.target.sql("show tables from shop"), "members\nmine", "it stopped at the first error");
    // The same step begins anew with what it has made itself.
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(backup.join("lifeboat.json"), &marker).unwrap();
    assert_eq!(world.restore("again", json!({})).await.unwrap().outputs["rows"], json!(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_longer_than_the_server_takes_statements_is_restored() {
    let mut world = World::new();
    world.source.down();
    world.source.up(&["--max-allowed-packet=64M"]);
    // Twice as long in the dump as it is, which is more than the 16 MiB that a server takes if nobody says otherwise.
    world.source.sql("create table shop.files (id int primary key, content longblob); insert into shop.files values (1, repeat(random_bytes(1024), 9 * 1024))");
    world.dump("dump", json!({})).await.unwrap();
    let packet = "select @@global.max_allowed_packet";
    let before = world.target.sql(packet);
    assert_eq!(before, (16 << 20).to_string());
    let done = world.restore("restore", json!({})).await.unwrap();
    assert_eq!(done.outputs["rows"], json!(9));
    let look = "select length(content), sha2(content, 256) from shop.files";
    assert_eq!(world.target.sql(look), world.source.sql(look));
    assert_eq!(world.target.sql(packet), before, "the setting is put back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_fit_is_refused_before_the_first_write() {
    let mut world = World::new();
    world.dump("dump", json!({})).await.unwrap();
    world.target.sql("set global event_scheduler = on");
    let error = world.restore("restore", json!({})).await.unwrap_err();
    assert!(error.code.id == "LB2034" && error.message.contains("events"), "{error}");
    assert_eq!(world.target.sql("show databases like 'shop'"), "");
    world.target.down();
    world.target.up(&["--lower-case-table-names=1"]);
    let error = world.restore("restore", json!({})).await.unwrap_err();
    assert!(error.code.id == "LB2034" && error.message.contains("lower_case_table_names"), "{error}");
    let none = world.restore("none", json!({ "backup": "20200101T000000Z-none" })).await.unwrap_err();
    assert_eq!(none.code.id, "LB1104");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_an_attempt_that_was_cut_off_get_their_rights() {
    let world = World::new();
    let done = world.dump("dump", json!({})).await.unwrap();
    let backup = world.backup(&done);
    let (file, marker) = (backup.join("users.sql.zst"), backup.join("lifeboat.json"));
    let whole = (std::fs::read(&file).unwrap(), std::fs::read(&marker).unwrap());
    // Cut off between an account and its rights.
    tamper_with(&backup, "users.sql.zst", |sql| {
        assert!(sql.contains("GRANT SELECT, INSERT"), "{sql}");
        sql.replace("GRANT SELECT, INSERT", "GRANT NONSENSE")
    });
    let cut = world.restore("restore", json!({})).await.unwrap_err();
    assert_eq!(cut.code.id, "LB2032", "{cut}");
    let grants = "show grants for app@localhost";
    assert_ne!(world.target.sql(grants), world.source.sql(grants), "the account is there without them");
    std::fs::write(&file, &whole.0).unwrap();
    std::fs::write(&marker, &whole.1).unwrap();
    world.restore("restore", json!({})).await.unwrap();
    assert_eq!(world.target.sql(grants), world.source.sql(grants));
}
