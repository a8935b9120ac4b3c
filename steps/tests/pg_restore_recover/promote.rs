//! `postgres.promote` of a server that was recovered, that has ended since, and that ends meanwhile.

use crate::support::postgres::{PATIENCE, StopOnDrop, succeed, wait_until};
use crate::support::rig::Rig;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::Probe;
use lifeboat_steps::postgres::codes;
use lifeboat_steps::postgres::isolation::Isolation;
use lifeboat_steps::postgres::pidfile::PidFile;
use rustix::process::{Pid, Signal};
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::scene::{Scene, end};

#[tokio::test]
async fn a_promoted_drill_server_is_writable_and_stays_isolated() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let archived = scene.segments().len();
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(done.outputs["timeline"], 2);
    assert_eq!((&done.outputs["isolated"], &done.outputs["archiving"]), (&json!(true), &json!("off")));
    scene.sql("insert into ledger values (50, 'written by the drill')");
    scene.sql("select pg_switch_wal()");
    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2,50");
    assert_eq!(scene.segments().len(), archived, "a drill never archives");

    let probe = scene.rig.probe("postgres.promote", json!({"cluster": "db"})).await.expect("answers");
    assert!(matches!(probe, Probe::Done(_)), "{probe:?}");
    let pid = PidFile::live(&scene.data_dir()).expect("runs").0.pid;
    let ready = scene.rig.run("postgres.wait_ready", json!({"cluster": "db"})).await.expect("is ready");
    assert_eq!(ready.outputs["in_recovery"], false);
    let stopped = scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    assert_eq!(stopped.outputs["how"], "fast");
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists() || PidFile::live(&scene.data_dir()).is_none());
    let again = scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("is stopped");
    assert_eq!(again.outputs["stopped"], false);
}

/// Nothing of what a source was set to may start, stop, delay or tell anybody anything: `ALTER SYSTEM` wins over
/// `postgresql.conf`, and is restored with the data.
#[tokio::test]
async fn settings_that_were_restored_with_the_data_do_nothing() {
    let scene = Scene::set();
    scene.source.sql("checkpoint");
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    let traces = scene.rig.dir().join("traces");
    fs::create_dir(&traces).expect("makes");
    fs::set_permissions(&traces, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("opens");
    let touch = |name: &str| format!("touch {}", traces.join(name).display());
    let hostile = [
        ("archive_command", touch("archived")),
        ("archive_cleanup_command", touch("cleaned")),
        ("recovery_end_command", touch("ended")),
        ("restore_command", "false".to_owned()),
        ("recovery_target_xid", "3".to_owned()),
        ("recovery_min_apply_delay", "1h".to_owned()),
        ("primary_conninfo", "host=127.0.0.1 port=1".to_owned()),
        ("primary_slot_name", "replica".to_owned()),
        ("synchronous_standby_names", "replica".to_owned()),
        ("shared_preload_libraries", "not_installed".to_owned()),
        ("session_preload_libraries", "not_installed".to_owned()),
        ("max_logical_replication_workers", "4".to_owned()),
        ("listen_addresses", "*".to_owned()),
        ("logging_collector", "on".to_owned()),
        ("log_destination", "csvlog".to_owned()),
        ("huge_pages", "on".to_owned()),
        ("ssl", "on".to_owned()),
    ];
    let lines: String = hostile.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
    let auto = scene.data_dir().join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).expect("it was restored") + &lines;
    fs::write(&auto, &text).expect("writes");

    scene.recover(Some(target)).await.expect("recovers to its own target, at once");
    scene.sql("checkpoint");
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!((&done.outputs["isolated"], &done.outputs["archiving"]), (&json!(true), &json!("off")));
    scene.sql("set statement_timeout = '60s'; insert into ledger values (50, 'nobody has to confirm it')");
    scene.sql("select pg_switch_wal()");
    for (name, value) in hostile.iter().filter(|(name, _)| !name.starts_with("restore_")) {
        assert_ne!(&scene.sql(&format!("show {name}")), value, "{name}");
    }
    let left: Vec<_> =
        fs::read_dir(&traces).expect("reads").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "commands of the source were run: {left:?}");
    assert_eq!(fs::read_to_string(&auto).expect("reads"), text, "and the restored file is as it was");
}

#[tokio::test]
async fn a_recovery_brings_the_server_into_service_with_its_own_configuration() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    // In a segment of its own, so that the log of the source goes on beyond the one in which it is left.
    scene.commit(4);
    scene.source.archive_wal();
    scene.rig.mode = lifeboat_engine::model::outcome::Mode::Recovery;
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    scene.source.stop("fast");
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!((&done.outputs["isolated"], &done.outputs["archiving"]), (&json!(false), &json!("proven")));
    // In the same archive.
    let said = done.warnings.join(" ");
    for word in ["base backup", "LB1833", "`timeline: 2`", "timelines [1]"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(scene.segments().iter().any(|path| path.to_string_lossy().contains("/00000002")));
    // The isolated server archived nothing, its history included; without that the timeline could not be followed.
    let archive = scene.segments()[0].parent().expect("a directory").to_owned();
    let history = fs::read_to_string(archive.join("00000002.history")).expect("is archived");
    assert!(history.starts_with("1\t"), "{history}");
    assert_eq!(Isolation::serving(&scene.data_dir()), None);
    let beside = fs::read_dir(scene.source.place().path()).expect("the place").flatten();
    let left: Vec<_> =
        beside.filter(|entry| entry.file_name().to_string_lossy().contains("lifeboat")).collect();
    assert!(left.is_empty(), "{left:?}");
    let probe = scene.rig.probe("postgres.promote", json!({"cluster": "db"})).await.expect("answers");
    assert!(matches!(probe, Probe::Done(_)));

    scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    let started = scene.rig.run("postgres.start", json!({"cluster": "db"})).await.expect("starts");
    assert_eq!(started.outputs["started"], true);
    let again = scene.rig.run("postgres.start", json!({"cluster": "db"})).await.expect("runs");
    assert_eq!((&again.outputs["started"], &again.outputs["pid"]), (&json!(false), &started.outputs["pid"]));
}

/// As a kill of Lifeboat leaves it that has just started the server with its own configuration: it has written the first lines
/// of its file, and whatever told that it was isolated before is still there.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_its_way_into_service_is_not_taken_for_the_isolated_one_and_waited_for() {
    let mut scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.rig.mode = lifeboat_engine::model::outcome::Mode::Recovery;
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let isolation = Isolation::serving(&scene.data_dir()).expect("it serves");
    scene.source.stop("fast");
    let promote = || scene.rig.run("postgres.promote", json!({"cluster": "db"}));
    promote().await.expect("promotes");
    let left = || {
        fs::create_dir(isolation.dir()).expect("makes");
        scene.source.place().own(&isolation.dir());
        isolation.save(scene.source.place().account.as_ref()).expect("describes");
    };
    left();
    let pid_file = scene.data_dir().join("postmaster.pid");
    let whole = fs::read_to_string(&pid_file).expect("runs");
    let first: String = whole.lines().take(4).map(|line| format!("{line}\n")).collect();
    fs::write(&pid_file, first + "\n").expect("writes");
    assert_eq!(Isolation::serving(&scene.data_dir()), None);
    let done = promote().await.expect("is in service");
    assert_eq!(done.outputs["isolated"], false);
    fs::write(&pid_file, whole).expect("writes");

    // It is still starting: it waits for the log that somebody else brings.
    scene.rig.run("postgres.stop", json!({"cluster": "db"})).await.expect("stops");
    left();
    let (go, log) = (scene.rig.dir().join("go"), scene.rig.dir().join("log"));
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done; false", go.display());
    fs::write(&log, "").expect("writes");
    scene.source.place().own(&log);
    fs::set_permissions(scene.rig.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("opens");
    fs::write(scene.data_dir().join("recovery.signal"), "").expect("writes");
    scene.source.place().own(&scene.data_dir().join("recovery.signal"));
    let mut by_hand = scene.source.place().command("pg_ctl");
    by_hand.arg("-D").arg(scene.data_dir()).arg("-l").arg(&log);
    let settings = format!("-p {} -c hot_standby=off -c restore_command='{waits}'", scene.target.port);
    let _stop = StopOnDrop { place: scene.source.place(), data_dir: scene.data_dir() };
    succeed(by_hand.args(["-W", "start", "-o"]).arg(settings));
    wait_until("it begins", || PidFile::live(&scene.data_dir()).is_some());
    let go_on = async {
        let deadline = Instant::now() + PATIENCE;
        let refused =
            || fs::read_to_string(&log).is_ok_and(|log| log.contains("the database system is starting up"));
        while !refused() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::write(&go, "").expect("writes");
    };
    let (done, ()) = tokio::join!(promote(), go_on);
    assert_eq!(done.expect("comes up").outputs["isolated"], false);
}

#[tokio::test]
async fn only_a_server_that_this_run_recovered_is_promoted() {
    let scene = Scene::set();
    let rig = Rig::drill().resource("backups", scene.store.system()).resource("db", scene.source.system());
    let error = rig.run("postgres.promote", json!({"cluster": "db"})).await.expect_err("a source");
    assert_eq!(error.code, codes::LB1272);
}

#[tokio::test]
async fn a_server_that_ended_before_its_promotion_comes_back_to_where_it_waited() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let server = PidFile::live(&scene.data_dir()).expect("runs").1;
    // QUIT: without a checkpoint, as if the power had gone, but with all its children.
    lifeboat_steps::process::identity::signal(&server, 3).expect("quit");
    wait_until("the server is gone", || !server.is_alive());
    // Beside the data directory, where the sync of its disk need not reach.
    let isolation = Isolation::read(&scene.data_dir()).expect("it served");
    fs::write(isolation.dir().join("postgresql.conf"), "fsync = off\n").expect("writes");
    scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(
        scene.sql("select string_agg(id::text, ',' order by id), current_setting('fsync') from ledger"),
        "1,2|on"
    );
}

#[tokio::test]
async fn a_promotion_that_was_cut_off_is_finished() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    for milliseconds in [5, 30, 120] {
        // Dropped in the middle, as if the process were gone; the helper goes with it.
        let cut = Duration::from_millis(milliseconds);
        tokio::time::timeout(cut, scene.rig.run("postgres.promote", json!({"cluster": "db"}))).await.ok();
    }
    let done = scene.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("is finished");
    assert_eq!(done.outputs["isolated"], true);
    assert_eq!(scene.sql("select pg_is_in_recovery()"), "f");
    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2");
}

/// As a kill of Lifeboat right after it asked for the promotion leaves it: the server asks a helper that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_while_it_is_promoted_is_started_again() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let (_, server) = PidFile::live(&scene.data_dir()).expect("runs");
    let isolation = Isolation::serving(&scene.data_dir()).expect("it serves");
    let replaying = startup_of(server.pid);
    let mut session = Session::open(&scene, &isolation);
    // So that the postmaster does not notice the end of that process before somebody asks it for a connection.
    signal(server.pid, Signal::STOP);
    wait_until("the postmaster stands still", || stat(server.pid).is_some_and(|stat| stat.starts_with('T')));
    assert_eq!(session.ask("select pg_promote(false)"), "t");
    session.close();
    wait_until("the session is gone", || sockets_in(&isolation.dir()) == 1);
    signal(replaying, Signal::USR2);
    wait_until("nobody serves the WAL", || is_over(replaying));
    let promotion = scene.rig.run("postgres.promote", json!({"cluster": "db"}));
    let go_on = async {
        let deadline = Instant::now() + PATIENCE;
        while sockets_in(&isolation.dir()) < 2 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        signal(server.pid, Signal::CONT);
    };
    let (done, ()) = tokio::join!(promotion, go_on);
    assert_eq!(done.expect("promotes").outputs["isolated"], true);
    assert_ne!(PidFile::live(&scene.data_dir()).expect("runs").1, server, "another one");
    assert_eq!(scene.sql("select pg_is_in_recovery()"), "f");
    assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2");
}

/// A session that goes on when the postmaster stands still.
struct Session {
    psql: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Session {
    fn open(scene: &Scene, isolation: &Isolation) -> Self {
        let mut psql = scene.source.place().command("psql");
        psql.args(["-XAtq", "-U", "postgres", "-d", "postgres", "-h"]).arg(isolation.dir());
        psql.args(["-p", &scene.target.port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = psql.spawn().expect("psql starts");
        let answers = BufReader::new(psql.stdout.take().expect("a pipe"));
        let mut session = Self { psql, answers };
        assert_eq!(session.ask("select 'here'"), "here");
        session
    }

    /// Runs a statement that gives one line.
    fn ask(&mut self, sql: &str) -> String {
        let mut line = String::new();
        writeln!(self.psql.stdin.as_mut().expect("a pipe"), "{sql};").expect("psql reads");
        self.answers.read_line(&mut line).expect("psql answers");
        line.trim_end().to_owned()
    }

    fn close(mut self) {
        drop(self.psql.stdin.take());
        assert!(self.psql.wait().expect("our own child").success());
    }
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).expect("a process"), signal)
        .expect("takes the signal");
}

fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

/// Finds the process of a server that replays.
fn startup_of(postmaster: u32) -> u32 {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let replays = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let parent = stat(*pid).and_then(|stat| stat.split(' ').nth(1)?.parse::<u32>().ok());
        parent == Some(postmaster) && line.contains("startup")
    };
    pids.find(replays).expect("a startup process")
}

/// Says whether a process has ended, noticed or not.
fn is_over(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.starts_with('Z'))
}

/// Counts the listening socket and the connections to it, taken or not.
fn sockets_in(dir: &std::path::Path) -> usize {
    let sockets = fs::read_to_string("/proc/net/unix").expect("a list of sockets");
    sockets.lines().filter(|line| line.contains(&*dir.to_string_lossy())).count()
}

/// As after a kill that took away what tells the server to recover: it replays all that lies in its directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_beyond_its_target_is_never_taken_for_restored() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let (data_dir, isolation) = (scene.data_dir(), Isolation::serving(&scene.data_dir()).expect("it serves"));
    let (_, server) = PidFile::live(&data_dir).expect("runs");
    lifeboat_steps::process::identity::signal(&server, 3).expect("quit");
    wait_until("the server is gone", || !server.is_alive());
    fs::remove_file(data_dir.join("recovery.signal")).expect("removes");
    let mut by_hand = scene.source.place().command("pg_ctl");
    let settings = format!(
        "-k {} -p {} -c listen_addresses= -c archive_mode=off -c hba_file={}/pg_hba.conf -c ident_file={}/pg_ident.conf",
        isolation.dir().display(),
        scene.target.port,
        isolation.dir().display(),
        isolation.dir().display(),
    );
    by_hand.arg("-D").arg(&data_dir).arg("-l").arg(data_dir.with_file_name("by-hand.log"));
    succeed(by_hand.args(["-w", "start", "-o"]).arg(settings));
    assert_eq!(
        scene.sql("select string_agg(id::text, ',' order by id) from ledger"),
        "1,2,3",
        "it has too much"
    );

    let probe = scene.rig.probe("postgres.promote", json!({"cluster": "db"})).await.expect("answers");
    assert!(matches!(probe, Probe::NotDone), "{probe:?}");
    assert!(PidFile::live(&data_dir).is_some(), "looking changes nothing");
    // While it runs, and when it is started again.
    for kind in ["postgres.promote", "postgres.promote", "postgres.start"] {
        let error =
            scene.rig.run(kind, json!({"cluster": "db"})).await.expect_err("is not what was asked for");
        assert_eq!((error.code, error.kind), (codes::LB1271, FailureKind::Permanent), "{kind}: {error}");
        assert!(error.message.contains("after the target"), "{kind}: {error}");
        assert!(
            error.help.as_deref().is_some_and(|help| help.contains("do not use it")),
            "{kind}: {error:?}"
        );
        assert!(PidFile::live(&data_dir).is_none(), "{kind}: it was stopped");
    }
}

/// Postgres makes its locks first and writes them next; a server that finds an empty one gives up. So does one that finds the
/// number of a process in it that runs under its own user, and is another one by now.
#[tokio::test]
async fn locks_of_a_killed_server_are_no_obstacle() {
    let scene = Scene::set();
    let target = scene.commit(2);
    scene.commit(3);
    scene.source.archive_wal();
    scene.restore_base().await;
    scene.recover(Some(target)).await.expect("recovers");
    let isolation = Isolation::serving(&scene.data_dir()).expect("it serves");
    let named = scene.target.socket_dir.clone().expect("a directory of sockets");
    let lock = format!(".s.PGSQL.{}.lock", scene.target.port);
    let locks = [scene.data_dir().join("postmaster.pid"), isolation.dir().join(&lock), named.join(&lock)];
    let mut other = std::process::Command::new("sleep");
    if let Some(account) = &scene.source.place().account {
        std::os::unix::process::CommandExt::uid(&mut other, account.uid);
    }
    let mut other = other.arg("3600").spawn().expect("starts");
    for (kind, number) in
        [("postgres.promote", None), ("postgres.start", None), ("postgres.start", Some(other.id()))]
    {
        let (_, server) = PidFile::live(&scene.data_dir()).expect("runs");
        end(&scene, &server, 9);
        for lock in &locks {
            let text = fs::read_to_string(lock).unwrap_or_else(|error| panic!("{}: {error}", lock.display()));
            let of_another = |number| text.replacen(&server.pid.to_string(), &format!("{number}"), 1);
            fs::write(lock, number.map(of_another).unwrap_or_default()).expect("writes");
        }
        scene
            .rig
            .run(kind, json!({"cluster": "db"}))
            .await
            .unwrap_or_else(|error| panic!("{kind}: {error:?}"));
        assert_eq!(scene.sql("select string_agg(id::text, ',' order by id) from ledger"), "1,2");
    }
    other.kill().and_then(|()| other.wait()).expect("our own child");
}
