//! Dumps that nobody described, damaged in every way: none of them leaves a database behind.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_engine::code::Code;
use lifeboat_engine::model::outcome::FailureKind::Permanent;
use lifeboat_steps::postgres::codes;
use serde_json::json;

use super::scene::assert_says;
use crate::support::backup::TestStore;
use crate::support::postgres::{Cluster, Options, succeed};
use crate::support::rig::Rig;

/// A server with a database, and dumps of it in a store.
struct Dumps {
    cluster: Cluster,
    store: TestStore,
    rig: Rig,
}

impl Dumps {
    fn make() -> Self {
        let cluster = Cluster::start(&Options::default());
        cluster.sql("create database members");
        cluster.sql_in(
            "members",
            "create table notes (id int primary key, note text); \
             insert into notes select n, md5(n::text) from generate_series(1, 20000) n",
        );
        let store = TestStore::make();
        let rig = Rig::drill().resource("db", cluster.system()).resource("backups", store.system());
        Self { cluster, store, rig }
    }

    fn dump(&self, database: &str, more: &[&str], to: &str) -> PathBuf {
        let scratch = self.cluster.place().path().join("dumped");
        drop((fs::remove_file(&scratch), fs::remove_dir_all(&scratch)));
        let mut command = self.cluster.place().command("pg_dump");
        command.args(["-U", "postgres", "-d", database, "-p", &self.cluster.port.to_string(), "-h"]);
        succeed(command.arg(&self.cluster.socket_dir).args(more).arg("-f").arg(&scratch));
        let path = self.store.path().join(to);
        let status = std::process::Command::new("cp").arg("-r").arg(&scratch).arg(&path).status();
        assert!(status.expect("cp runs").success());
        path
    }

    async fn refuses(&self, what: &str, object: &str, (code, words): (Code, &[&str])) {
        let with = json!({"cluster": "db", "database": "restored", "store": "backups", "object": object});
        let error = self.rig.run("postgres.restore_dump", with).await.expect_err(what);
        assert_says(&error, (code, Permanent), &[words, &[object]].concat());
        let sql = "select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate";
        assert_eq!(self.cluster.sql(sql), "members postgres", "{what}");
        assert_eq!(self.cluster.sql_in("members", "select count(*) from notes"), "20000", "{what}");
        assert!(self.rig.made_at().is_empty(), "{what}: {:?}", self.rig.made_at());
    }
}

fn cut(path: &Path, keep: impl Fn(usize) -> usize) {
    let bytes = fs::read(path).expect("reads");
    fs::write(path, &bytes[..keep(bytes.len())]).expect("writes");
}

fn change(path: &Path, part: f64, by: &[u8]) {
    let mut bytes = fs::read(path).expect("reads");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place within a small file"
    )]
    let at = (bytes.len() as f64 * part) as usize;
    bytes[at..at + by.len()].copy_from_slice(by);
    fs::write(path, bytes).expect("writes");
}

#[tokio::test]
async fn archives_that_are_cut_off_or_damaged() {
    let dumps = Dumps::make();
    for (what, keep) in [
        ("without its last bytes", (|length| length - 40) as fn(usize) -> usize),
        ("half of it; the table of contents is whole", |length| length / 2),
        ("one percent of it", |length| length / 100),
        ("the magic word alone", |_| 5),
    ] {
        let path = dumps.dump("members", &["-Fc"], "cut.dump");
        cut(&path, keep);
        dumps.refuses(what, "cut.dump", (codes::LB1279, &[])).await;
    }
    let path = dumps.dump("members", &["-Fc", "-Z", "6"], "bad.dump");
    change(&path, 0.5, &[0xFF; 512]);
    dumps.refuses("compressed data that do not decompress", "bad.dump", (codes::LB1279, &[])).await;

    let path = dumps.dump("members", &["-Fd"], "dir");
    let data = fs::read_dir(&path).expect("a directory").flatten().map(|entry| entry.path());
    let data = data.into_iter().find(|path| !path.ends_with("toc.dat")).expect("data of the table");
    cut(&data, |length| length / 2);
    dumps.refuses("a directory with half of a table", "dir", (codes::LB1279, &[])).await;
    fs::remove_file(&data).expect("removes");
    dumps.refuses("a directory without the data of a table", "dir", (codes::LB1279, &[])).await;
    fs::write(data, "a table").expect("writes");
    fs::remove_file(path.join("toc.dat")).expect("removes");
    dumps.refuses("a directory without its table of contents", "dir", (codes::LB1279, &[])).await;
}

/// Plain SQL is run by nobody, however it begins and ends.
#[tokio::test]
async fn plain_sql_with_and_without_its_beginning_and_end() {
    let dumps = Dumps::make();
    let path = dumps.dump("members", &["-Fp"], "plain.sql");
    let plain = fs::read_to_string(&path).expect("reads");
    let body = plain.split_once("\n\n").expect("a header").1;
    let trailer = plain.rfind("-- PostgreSQL database dump complete").expect("a trailer");
    for (what, text) in [
        ("as it is", plain.clone()),
        ("restricted", format!("\\restrict 7Jw3Gd\n{body}\n\\unrestrict 7Jw3Gd\n")),
        ("without its trailer", plain[..trailer].to_owned()),
        ("cut off within the data", plain[..plain.len() / 2].to_owned()),
        ("with another database in it", format!("\\connect members\ndrop table notes;\n{body}")),
        ("empty", String::new()),
    ] {
        fs::write(&path, text).expect("writes");
        dumps.refuses(what, "plain.sql", (codes::LB1285, &["pg_dump -Fc"])).await;
    }
    let packed = zstd::encode_all(plain.as_bytes(), 1).expect("zstd");
    fs::write(dumps.store.path().join("plain.sql.zst"), packed).expect("writes");
    dumps.refuses("packed", "plain.sql.zst", (codes::LB1285, &[])).await;
}

/// What the archive says of its encoding is not what its rows are written in.
#[tokio::test]
async fn rows_in_another_encoding_than_the_dump_says() {
    let dumps = Dumps::make();
    dumps.cluster.sql("create database latin encoding 'LATIN1' locale 'C' template template0");
    dumps.cluster.sql_in("latin", "create table notes as select 'Z' || chr(252) || 'rich' as note");
    let path = dumps.dump("latin", &["-Fc", "-Z", "0"], "latin.dump");
    dumps.cluster.sql("drop database latin");
    // As it is, it is converted.
    let with = json!({"cluster": "db", "database": "restored", "store": "backups", "object": "latin.dump"});
    dumps.rig.run("postgres.restore_dump", with).await.expect("restores");
    let umlaut = "select note = 'Z' || chr(252) || 'rich' from notes";
    assert_eq!(dumps.cluster.sql_in("restored", umlaut), "t");
    dumps.cluster.sql("drop database restored");

    let mut bytes = fs::read(&path).expect("reads");
    let says = b"SET client_encoding = 'LATIN1'";
    let at = bytes.windows(says.len()).position(|window| window == says).expect("it says so");
    bytes[at..at + says.len()].copy_from_slice(b"SET client_encoding = 'UTF8'  ");
    fs::write(&path, bytes).expect("writes");
    let rig = Rig::drill().resource("db", dumps.cluster.system()).resource("backups", dumps.store.system());
    let dumps = Dumps { rig, ..dumps };
    dumps.refuses("rows that are no UTF-8", "latin.dump", (codes::LB1282, &["invalid byte sequence"])).await;
}
