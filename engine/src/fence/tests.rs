use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A network with a few names.
struct Names;

impl Network for Names {
    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        let known: &[&str] = match host {
            "db.example.org" | "primary.example.org" => &["10.0.0.5", "fd00::5"],
            "replica.example.org" => &["10.0.0.6"],
            "this.example.org" => &["10.0.0.9"],
            _ => return Spelled.addresses(host),
        };
        known.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn is_own(&self, address: IpAddr) -> bool {
        Spelled.is_own(address) || address.to_string() == "10.0.0.9"
    }
}

fn resource(written: Value) -> Resource {
    serde_json::from_value(written).expect("a resource")
}

fn protected(written: Value) -> Protected {
    Protected::new("production", "db", &resource(written)).expect("it has a place")
}

fn found(mine: Value, theirs: Value) -> Option<String> {
    let mine = claims(&resource(mine), Origin::Environment);
    breach(&mine, [&protected(theirs)], &Names).map(|breach| breach.place)
}

fn postgres(host: &str, port: u16) -> Value {
    json!({ "kind": "postgres", "host": host, "port": port })
}

fn cluster(dir: &Path) -> Value {
    // The ports differ, so that the directory alone decides.
    json!({ "kind": "postgres", "data_dir": dir, "port": dir.as_os_str().len() + 2000 })
}

fn store(url: &str, endpoint: Option<&str>) -> Value {
    json!({ "kind": "store", "url": url, "endpoint": endpoint })
}

#[test]
fn this_machine_has_many_names() {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let spellings = [
        "localhost",
        "LOCALHOST.",
        "127.0.0.1",
        "127.0.1.1",
        "::1",
        "[::1]",
        "0.0.0.0",
        "10.0.0.9",
        "this.example.org",
        "/run/postgresql",
        &name,
    ];
    for mine in spellings {
        for theirs in spellings {
            assert!(found(postgres(mine, 5432), postgres(theirs, 5432)).is_some(), "{mine} and {theirs}");
        }
        assert_eq!(found(postgres(mine, 5433), postgres("localhost", 5432)), None, "{mine}");
        assert_eq!(found(postgres(mine, 5432), postgres("10.0.0.5", 5432)), None, "{mine}");
    }
}

#[test]
fn hosts_are_compared_by_their_addresses() {
    let theirs = || postgres("db.example.org", 5432);
    for mine in ["primary.example.org", "10.0.0.5", "fd00::5", "DB.example.org."] {
        let place = found(postgres(mine, 5432), theirs());
        assert!(place.is_some_and(|place| place.contains(mine)), "{mine}");
    }
    for mine in ["replica.example.org", "unknown.example.org"] {
        assert_eq!(found(postgres(mine, 5432), theirs()), None, "{mine}");
    }
    assert!(found(postgres("unknown.example.org", 1), postgres("unknown.example.org", 1)).is_some());
}

#[test]
fn default_ports_and_trailing_slashes_mean_nothing() {
    let redis = |url: &str| json!({ "kind": "redis", "url": url });
    assert!(found(redis("redis://cache/"), redis("redis://cache:6379/3")).is_some());
    assert_eq!(found(redis("redis://cache:6380"), redis("redis://cache")), None);
    let http = |url: &str| json!({ "kind": "http", "url": url });
    assert!(found(http("https://shop.example.org/"), http("https://shop.example.org:443/x")).is_some());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    assert!(found(store(&format!("dir://{path}/"), None), store(&format!("dir://{path}"), None)).is_some());
}

#[test]
fn a_mariadb_is_known_by_its_socket_its_port_and_its_directory() {
    let mariadb = |written: Value| {
        let mut all = json!({ "kind": "mariadb" });
        all.as_object_mut().unwrap().extend(written.as_object().unwrap().clone());
        all
    };
    let by_socket = mariadb(json!({ "socket": "/run/one/m.sock" }));
    // Nobody can tell from outside whose socket it is, so the usual port counts.
    assert!(found(by_socket.clone(), mariadb(json!({ "host": "127.0.0.1" }))).is_some());
    let other = |port: u16| mariadb(json!({ "socket": "/run/other/m.sock", "port": port }));
    assert_eq!(found(by_socket.clone(), other(3307)), None);
    assert!(
        found(by_socket.clone(), mariadb(json!({ "socket": "/run/one/m.sock", "port": 3308 }))).is_some()
    );
    let dir = |port: u16| mariadb(json!({ "data_dir": "/srv/mysql", "port": port }));
    assert!(found(dir(3309), dir(3310)).is_some());
}

#[test]
fn a_store_inside_another_one_is_not_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| store(&format!("dir://{}/{name}", dir.path().display()), None);
    assert!(found(at("backups/drill"), at("backups")).is_some());
    assert!(found(at("backups"), at("backups/postgres")).is_some());
    assert_eq!(found(at("backups-drill"), at("backups")), None);
    let files = json!({ "kind": "files", "path": dir.path().join("backups/x/y") });
    assert!(found(files, at("backups")).is_some());
}

#[test]
fn a_bucket_is_one_in_every_spelling_of_its_server() {
    let same = |mine: Option<&str>, theirs: Option<&str>| {
        found(store("s3://b/a/c/", mine), store("s3://b/a", theirs)).is_some()
    };
    assert!(same(None, None));
    assert!(same(Some("https://s3.eu-west-1.amazonaws.com"), None));
    assert!(same(Some("https://S3.amazonaws.com/"), Some("https://s3.eu-west-1.amazonaws.com:443")));
    assert!(same(Some("http://127.0.0.1:9000"), Some("http://localhost:9000/")));
    assert!(same(Some("http://db.example.org"), Some("https://primary.example.org:443/")));
    assert!(!same(Some("http://127.0.0.1:9000"), Some("http://127.0.0.1:9001")));
    assert!(!same(Some("http://minio.example.org"), None));
    assert_eq!(found(store("s3://b/ab", None), store("s3://b/a", None)), None);
    assert_eq!(found(store("s3://c/a", None), store("s3://b/a", None)), None);
    assert!(found(store("s3://b", None), store("s3://b/a", None)).is_some());
}

#[test]
fn directories_are_found_through_links_and_missing_ends() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("data")).unwrap();
    std::os::unix::fs::symlink(at("data"), at("link")).unwrap();
    let place = found(cluster(&at("link")), cluster(&at("data"))).expect("one directory");
    assert!(place.contains("link") && place.contains(&at("data").display().to_string()), "{place}");
    assert!(found(cluster(&at("data/not/yet")), cluster(&at("link"))).is_some());
    assert!(found(cluster(dir.path()), cluster(&at("data"))).is_some());
    assert_eq!(found(cluster(&at("data2")), cluster(&at("data"))), None);
}

#[test]
fn a_copy_with_the_same_identifier_is_another_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (source, copy, farther) =
        (dir.path().join("source"), dir.path().join("copy"), dir.path().join("farther"));
    for cluster in [&source, &copy, &farther] {
        std::fs::create_dir_all(cluster.join("global")).unwrap();
        std::fs::write(cluster.join("global/pg_control"), 7_312_000_000_000_000_001_u64.to_ne_bytes())
            .unwrap();
    }
    assert_eq!(found(cluster(&copy), cluster(&source)), None, "a restored copy is what drills are for");
    // The server that uses the directory knows it by another path.
    std::fs::write(copy.join("postmaster.pid"), format!("4711\n{}\n1\n5432\n", source.display())).unwrap();
    let place = found(cluster(&copy), cluster(&source)).expect("one cluster");
    assert!(place.contains("postmaster.pid") && place.contains("7312000000000000001"), "{place}");
    assert!(found(cluster(&source), cluster(&copy)).is_some(), "from the other side too");
    // A directory that is another one's through a link inside of it.
    std::fs::remove_dir_all(farther.join("global")).unwrap();
    std::os::unix::fs::symlink(source.join("global"), farther.join("global")).unwrap();
    assert!(found(cluster(&farther), cluster(&source)).is_some_and(|place| place.contains("control file")));
}

#[test]
fn what_a_run_makes_has_a_socket_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let made = json!({ "kind": "postgres", "data_dir": dir.path().join("clone"), "socket_dir": dir.path(), "port": 5432 });
    let theirs = protected(json!({ "kind": "postgres", "data_dir": dir.path().join("main"), "port": 5432 }));
    let of = |origin| breach(&claims(&resource(made.clone()), origin), [&theirs], &Names);
    assert_eq!(of(Origin::Run), None);
    assert!(of(Origin::Environment).is_some(), "a socket that an environment names stands for the port");
    let inside = protected(json!({ "kind": "files", "path": dir.path() }));
    assert!(breach(&claims(&resource(made), Origin::Run), [&inside], &Names).is_some());
}

#[test]
fn names_of_services_are_compared_in_one_spelling() {
    let unit = |unit: &str| json!({ "kind": "service", "manager": "systemd", "unit": unit });
    assert!(found(unit("shop"), unit("shop.service")).is_some());
    assert_eq!(found(unit("shop2"), unit("shop")), None);
}

#[test]
fn locks_have_one_name_for_each_place() {
    let names = |written: Value| lock_names(&resource(written), &Names);
    assert_eq!(names(postgres("127.0.0.1", 5432)), ["tcp://localhost:5432"]);
    assert_eq!(names(postgres("Cache", 6379)), ["tcp://cache:6379"]);
    assert_eq!(names(json!({ "kind": "http", "url": "https://[::1]/x" })), ["tcp://localhost:443"]);
    assert_eq!(names(store("s3://b/a/", None)), ["s3://b/a"]);
    assert_eq!(names(store("s3://b/a", Some("http://127.0.0.1:9000"))), ["s3://b/a at localhost:9000"]);
    assert_eq!(names(postgres("this.example.org", 5432)), ["tcp://localhost:5432"]);
    let known = names(postgres("primary.example.org", 5432));
    assert_eq!(known, ["tcp://10.0.0.5:5432", "tcp://fd00::5:5432", "tcp://primary.example.org:5432"]);
    let other = names(postgres("db.example.org", 5432));
    assert!(other.iter().any(|name| known.contains(name)), "one server under two names");
}

#[test]
fn names_of_places_within_each_other_overlap() {
    for (mine, theirs) in [
        ("/var/www", "/var/www"),
        ("/var/www/uploads", "/var/www"),
        ("s3://b", "s3://b/a/c"),
        ("s3://b/a at h:1", "s3://b at h:1"),
        ("tcp://h:1", "tcp://h:1"),
    ] {
        assert!(names_overlap(mine, theirs) && names_overlap(theirs, mine), "{mine} and {theirs}");
    }
    for (mine, theirs) in [
        ("/var/www2", "/var/www"),
        ("s3://b/ab", "s3://b/a"),
        ("s3://b at h:1", "s3://b at h:2"),
        ("s3://b", "s3://b at h:2"),
        ("tcp://h:1", "tcp://h:11"),
        ("restore@a", "restore@ab"),
    ] {
        assert!(!names_overlap(mine, theirs) && !names_overlap(theirs, mine), "{mine} and {theirs}");
    }
}

#[test]
fn the_machine_knows_its_own_addresses() {
    let machine = Machine::new();
    assert!(machine.addresses("localhost").iter().all(|address| machine.is_own(*address)));
    assert!(!machine.is_own("192.0.2.1".parse().unwrap()), "kept for documentation, and of no machine");
}
