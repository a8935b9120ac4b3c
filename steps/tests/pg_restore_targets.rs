//! Where a recovery stops: every kind of target, and timelines that part.

pub mod support;

use std::fs;

use lifeboat_engine::model::event::Done;
use lifeboat_steps::postgres::codes;
use serde_json::{Value, json};
use support::archive::Archive;
use support::journey::Journey;
use support::postgres::wait_until;

fn is_proven(done: &Done) {
    assert!(done.checks.iter().all(|check| check.passed), "{:?}", done.checks);
    assert!(done.checks.iter().any(|check| check.name == "recovery stopped at its target"));
}

fn stop(done: &Done) -> &str {
    done.outputs["stopped_at"].as_str().expect("a line of the log")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_target_is_met_and_proven_one_after_the_other() {
    let journey = Journey::begin(Archive::make());
    let label = journey.back_up().await;
    let early = journey.commit(1);
    journey.source.sql("select pg_create_restore_point('before import')");
    let insert =
        "with row as (insert into ledger values (2) returning id) select pg_current_xact_id()::text from row";
    let xid: u64 = journey.source.sql(insert).parse().expect("a number");
    let lsn = journey.source.sql("select pg_current_wal_insert_lsn()");
    journey.commit(3);
    journey.commit(4);
    journey.source.archive_wal();

    // What can be seen before anything starts is seen then.
    let chosen = journey.choose(json!({"target_lsn": lsn})).await.expect("fits");
    assert_eq!(chosen.outputs["backup"], label);
    let late = json!({"target_lsn": "7/0"});
    assert_eq!(journey.choose(late.clone()).await.expect_err("beyond").code, codes::LB1834);
    let error = journey.choose(json!({"target_lsn": "0/1"})).await.expect_err("before all backups");
    assert!(error.code == codes::LB1221 && error.message.contains(&label), "{error}");

    journey.restore(&label, json!({})).await.expect("restores");
    let error = journey.recover(late).await.expect_err("beyond");
    assert!(error.code == codes::LB1834 && error.message.contains("7/0"), "{error}");
    assert_eq!(
        journey.recover(json!({"target_lsn": "0/1"})).await.expect_err("too early").code,
        codes::LB1269
    );
    let two = json!({"target_lsn": lsn, "target_time": early.to_string()});
    let error = journey.recover(two).await.expect_err("two targets");
    assert!(error.message.contains("`target_time` and `target_lsn`"), "{error}");
    let error =
        journey.recover(json!({"target": "immediate", "timeline": "2"})).await.expect_err("has its own");
    assert_eq!(error.code, codes::LB1269);

    // Until it is promoted, a later target can still be chosen.
    let done = journey.recover(json!({"target": "immediate"})).await.expect("is consistent");
    is_proven(&done);
    assert_eq!(stop(&done), "recovery stopping after reaching consistency");
    assert_eq!((journey.ledger().as_str(), &done.outputs["end_of_wal"]), ("", &json!(false)));
    let done = journey.recover(json!({"target_name": "before import"})).await.expect("is there");
    is_proven(&done);
    assert!(
        stop(&done).starts_with("recovery stopping at restore point \"before import\""),
        "{}",
        stop(&done)
    );
    assert_eq!(journey.ledger(), "1");
    let done = journey.recover(json!({"target_xid": xid})).await.expect("commits");
    is_proven(&done);
    assert!(stop(&done).contains(&format!("before commit of transaction {xid},")), "{}", stop(&done));
    assert_eq!(journey.ledger(), "1", "just before it");
    let done = journey.recover(json!({"target_xid": xid, "inclusive": true})).await.expect("commits");
    is_proven(&done);
    assert_eq!(journey.ledger(), "1,2");
    let done = journey.recover(json!({"target_lsn": lsn})).await.expect("is there");
    is_proven(&done);
    assert!(stop(&done).contains("before WAL location"), "{}", stop(&done));
    assert_eq!(journey.ledger(), "1,2");
    assert_eq!(done.facts["target"], format!("just before the record at {lsn}"));

    // A target that does not come is never taken for the end of the WAL.
    let error = journey.recover(json!({"target_name": "never made"})).await.expect_err("is nowhere");
    assert!(error.code == codes::LB1834 && error.message.contains("`never made`"), "{error}");
    let done = journey.recover(json!({"target": "latest"})).await.expect("goes to the end");
    is_proven(&done);
    assert_eq!((journey.ledger().as_str(), &done.outputs["end_of_wal"]), ("1,2,3,4", &json!(true)));
}

/// Makes the source end its recovery, as a failover does: on a new timeline, which it archives.
fn fail_over(journey: &Journey) {
    journey.source.stop("fast");
    let dir = &journey.source.data_dir;
    let configuration = dir.join("postgresql.conf");
    let mut text = fs::read_to_string(&configuration).expect("reads");
    text.push_str("restore_command = 'false'\n");
    fs::write(&configuration, text).expect("writes");
    let signal = dir.join("recovery.signal");
    fs::write(&signal, "").expect("writes");
    journey.source.place().own(&signal);
    journey.source.start_server();
    wait_until("the source takes writes", || journey.source.sql("select pg_is_in_recovery()") == "f");
}

fn system(journey: &Journey) -> String {
    journey.source.sql("select system_identifier from pg_control_system()")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_of_timelines_is_crossed_or_not_as_the_target_lies() {
    let mut journey = Journey::begin(Archive::make());
    let label = journey.back_up().await;
    let before = journey.commit(1);
    journey.commit(2);
    journey.source.archive_wal();
    journey.commit(3);
    fail_over(&journey);
    let after = journey.commit(4);
    journey.commit(5);
    journey.source.archive_wal();
    let at = |time: jiff::Timestamp| json!({"target_time": time.to_string()});

    for target in [before, after] {
        let chosen = journey.choose(at(target)).await.expect("fits");
        assert_eq!((&chosen.outputs["backup"], &chosen.outputs["timeline"]), (&json!(label), &json!(2)));
        assert!(chosen.checks.iter().all(|check| check.passed) && chosen.warnings.is_empty(), "{chosen:?}");
    }
    journey.restore(&label, json!({})).await.expect("restores");
    let done = journey.recover(at(before)).await.expect("stops before the switch");
    is_proven(&done);
    assert_eq!((journey.ledger().as_str(), &done.outputs["timeline"]), ("1", &json!(1)));
    let done = journey.recover(at(after)).await.expect("stops after the switch");
    is_proven(&done);
    assert_eq!((journey.ledger().as_str(), &done.outputs["timeline"]), ("1,2,3,4", &json!(2)));
    let promoted = journey.rig.run("postgres.promote", json!({"cluster": "db"})).await.expect("promotes");
    assert_eq!(promoted.outputs["timeline"], 3);

    // Told to stay on the timeline of the backup, it ends with it and says what it did not follow.
    journey.to_another_place("stays");
    journey.restore(&label, json!({})).await.expect("restores");
    let done = journey.recover(json!({"timeline": "current", "target": "latest"})).await.expect("ends");
    assert_eq!((journey.ledger().as_str(), &done.outputs["timeline"]), ("1,2,3", &json!(1)));
    assert!(done.warnings.iter().any(|warning| warning.contains("[2]")), "{:?}", done.warnings);

    the_log_parts(&mut journey, (&label, after)).await;
}

/// A drill archives what it wrote: from then on nobody follows the newest timeline without being told.
async fn the_log_parts(journey: &mut Journey, (label, target): (&str, jiff::Timestamp)) {
    let wal = journey.archive.root.join("wal").join(system(journey));
    let history = "1\t0/3000000\tno recovery target specified\n\n";
    fs::write(wal.join("00000003.history"), history).expect("writes");
    let error = journey.choose(json!({"target_time": target.to_string()})).await.expect_err("which?");
    assert_eq!(error.code, codes::LB1833);
    assert!(error.message.contains("timeline 3") && error.message.contains("timeline 2 goes on"), "{error}");
    assert!(error.help.expect("help").contains("`timeline`"));

    let told = json!({"target_time": target.to_string(), "timeline": 2});
    assert_eq!(journey.choose(told).await.expect("is told").outputs["backup"], label);
    journey.to_another_place("told");
    journey.restore(label, json!({})).await.expect("restores");
    let target = |more: Value| {
        let mut with = json!({"target_time": target.to_string()});
        with.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        with
    };
    assert_eq!(journey.recover(target(json!({}))).await.expect_err("which?").code, codes::LB1833);
    is_proven(&journey.recover(target(json!({"timeline": "2"}))).await.expect("is told"));
    assert_eq!(journey.ledger(), "1,2,3,4");

    // What production writes next, and a base backup of it, do not make the stray timeline older; its own backup would.
    let newer = journey.back_up().await;
    assert_eq!(journey.choose(json!({})).await.expect_err("still").code, codes::LB1833);
    fs::remove_file(wal.join("00000003.history")).expect("removes");
    assert_eq!(journey.choose(json!({})).await.expect("fits").outputs["backup"], newer);
    let chosen = journey.choose(json!({"target": "immediate"})).await.expect("fits");
    assert_eq!((&chosen.outputs["backup"], &chosen.outputs["timeline"]), (&json!(newer), &json!(2)));
}
