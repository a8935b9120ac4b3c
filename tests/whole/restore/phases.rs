//! Processes that die in each phase of a restore. A phase is known by a request that the test holds back, never by time.

use super::machine::{end_processes, signal};
use super::remote::Remote;
use crate::project::{Ran, Running};
use crate::proxy::eventually;

/// Where a run stands still until the test lets it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Base,
    Recover,
    Verify,
    Promote,
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Engine,
    Postmaster,
    /// `lifeboat wal get`, which the server runs for each file of the log.
    Helper,
}

impl Phase {
    fn step(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Recover => "recover",
            Self::Verify => "verify",
            Self::Promote => "promote",
        }
    }

    /// Makes a drill come to a stand in this phase.
    fn reach(self, remote: &Remote) -> Running {
        match self {
            Self::Base => remote.hold("GET *base.tar"),
            Self::Recover => remote.hold(&remote.world.source.middle_segment),
            Self::Verify => remote.stop_verify(),
            // Asked for when the server looks for a free timeline.
            Self::Promote => remote.hold("/00000002.history"),
        }
        let mut running = remote.world.start_drill(&[]);
        if self == Self::Verify {
            eventually("verify runs", || has_begun(remote, "verify"));
        } else {
            remote.until_held(&mut running);
            eventually("the step runs", || has_begun(remote, self.step()));
        }
        running
    }

    fn let_go(self, remote: &Remote) {
        match self {
            Self::Verify => remote.let_verify(),
            _ => remote.proxy.heal(),
        }
    }
}

fn has_begun(remote: &Remote, step: &str) -> bool {
    use lifeboat_engine::model::EventKind;
    let is_it = |event: &EventKind| matches!(event, EventKind::AttemptStarted { step: of, .. } if of.as_str() == step);
    remote.world.events().iter().any(is_it)
}

fn outcome(remote: &Remote, step: &str) -> serde_json::Value {
    let report = remote.world.report();
    let steps = report["steps"].as_array().expect("a list").clone();
    steps.into_iter().find(|it| it["id"] == step).expect("the step")
}

/// A segment that is read ahead may be held before the server asks for it.
fn find(remote: &Remote, name: &str, word: &str) -> u32 {
    let mut found = None;
    eventually("the process runs", || {
        found = remote.process(name, word);
        found.is_some()
    });
    found.expect("just seen").pid
}

/// Kills within a phase. Whoever resumes ends with the right rows, nothing is left, and the archive is as it was.
fn comes_right_after_the_kill(phase: Phase, victim: Victim) {
    let remote = Remote::postgres();
    let running = phase.reach(&remote);
    let pid = match victim {
        Victim::Engine => None,
        Victim::Postmaster => Some(find(&remote, "postgres", "-D")),
        Victim::Helper => Some(find(&remote, "lifeboat", " wal get ")),
    };
    match pid {
        None => {
            running.signal("KILL");
            drop(running);
            phase.let_go(&remote);
        }
        Some(pid) => {
            signal(pid, "KILL");
            eventually("it is gone", || !remote.world.processes().iter().any(|it| it.pid == pid));
            phase.let_go(&remote);
            let held = running.end();
            assert!(held.exit == 6 || held.exit == 0, "held, or made good: {}", held.all());
            if held.exit == 6 {
                assert!(held.all().contains("lifeboat retry"), "what to do next is said: {}", held.all());
                remote.world.run(&["retry", "latest", phase.step()]).expect(0);
            }
        }
    }
    finish(&remote);
    let steps = outcome(&remote, phase.step());
    assert_eq!(steps["outcome"]["outcome"], "succeeded", "{steps}");
}

/// Resumes until the drill has ended.
fn finish(remote: &Remote) -> Option<Ran> {
    let ended = remote.world.report()["outcome"]["state"] == "succeeded";
    let resumed = (!ended).then(|| remote.world.run(&["resume"]).expect(0));
    remote.world.assert_payments();
    remote.assert_as_before();
    resumed
}

#[test]
fn kill_9_of_the_engine_while_a_backup_is_unpacked_from_a_bucket() {
    comes_right_after_the_kill(Phase::Base, Victim::Engine);
}

#[test]
fn kill_9_of_the_engine_while_wal_is_replayed_from_a_bucket() {
    comes_right_after_the_kill(Phase::Recover, Victim::Engine);
}

#[test]
fn kill_9_of_the_engine_while_the_recovered_server_is_verified() {
    comes_right_after_the_kill(Phase::Verify, Victim::Engine);
}

#[test]
fn kill_9_of_the_engine_while_the_server_is_promoted() {
    comes_right_after_the_kill(Phase::Promote, Victim::Engine);
}

#[test]
fn kill_9_of_the_postmaster_while_it_replays() {
    comes_right_after_the_kill(Phase::Recover, Victim::Postmaster);
}

#[test]
fn kill_9_of_the_postmaster_while_it_is_verified() {
    comes_right_after_the_kill(Phase::Verify, Victim::Postmaster);
}

#[test]
fn kill_9_of_the_postmaster_while_it_is_promoted() {
    comes_right_after_the_kill(Phase::Promote, Victim::Postmaster);
}

#[test]
fn kill_9_of_the_helper_while_wal_is_replayed() {
    comes_right_after_the_kill(Phase::Recover, Victim::Helper);
}

#[test]
fn kill_9_of_the_helper_while_the_server_is_promoted() {
    comes_right_after_the_kill(Phase::Promote, Victim::Helper);
}

/// The store says nothing at all meanwhile.
fn sigterm_in(phase: Phase) {
    let remote = Remote::postgres();
    let running = phase.reach(&remote);
    running.signal("TERM");
    let stopped = running.end().expect(143);
    assert!(stopped.all().contains("lifeboat resume"), "{}", stopped.all());
    phase.let_go(&remote);
    finish(&remote);
}

#[test]
fn sigterm_while_a_backup_is_unpacked() {
    sigterm_in(Phase::Base);
}

#[test]
fn sigterm_while_wal_is_replayed() {
    sigterm_in(Phase::Recover);
}

#[test]
fn sigterm_while_the_recovered_server_is_verified() {
    sigterm_in(Phase::Verify);
}

#[test]
fn sigterm_while_the_server_is_promoted() {
    sigterm_in(Phase::Promote);
}

/// The engine and the server are gone, and the boot is another one.
fn reboot(remote: &Remote, running: Running) -> Ran {
    running.signal("KILL");
    drop(running);
    end_processes(&remote.world.dir);
    remote.proxy.heal();
    remote.let_verify();
    Ran::of(remote.world.command(&["resume"]).env("LIFEBOAT_BOOT_ID", "another-boot"))
}

#[test]
fn a_reboot_while_the_base_backup_is_unpacked() {
    let remote = Remote::postgres();
    let running = Phase::Base.reach(&remote);
    reboot(&remote, running).expect(0);
    finish(&remote);
}

/// What was replayed was never synced: nothing of it may be used, and a new run begins anew.
#[test]
fn a_reboot_while_wal_is_replayed_refuses_what_may_be_torn() {
    let remote = Remote::postgres();
    let running = Phase::Recover.reach(&remote);
    let held = reboot(&remote, running).expect(6);
    assert!(held.all().contains("LB1226"), "{}", held.all());
    remote.world.run(&["abort", "latest", "--reason", "the machine went down"]).expect(0);
    remote.world.run(&["resume"]).expect(4);
    remote.assert_as_before();
    remote.world.drill(&[]).expect(0);
    remote.world.assert_payments();
    remote.assert_as_before();
}

#[test]
fn a_reboot_while_the_recovered_server_is_verified() {
    let remote = Remote::postgres();
    let running = Phase::Verify.reach(&remote);
    let resumed = reboot(&remote, running);
    assert!(resumed.exit == 0, "{}", resumed.all());
    finish(&remote);
}

#[test]
fn a_reboot_while_the_server_is_promoted() {
    let remote = Remote::postgres();
    let running = Phase::Promote.reach(&remote);
    reboot(&remote, running).expect(0);
    finish(&remote);
}

#[test]
fn a_second_engine_is_refused_while_the_first_restores() {
    let remote = Remote::postgres();
    let running = Phase::Recover.reach(&remote);
    for words in [&["resume"][..], &["drill", "restore", "--env", "sandbox"]] {
        let incident = remote.world.source.target.to_string();
        let more = if words[0] == "drill" { vec!["--incident-at", incident.as_str()] } else { vec![] };
        let refused = remote.world.run(&[words, &more].concat()).expect(7);
        assert!(refused.all().contains("lifeboat "), "{}", refused.all());
    }
    remote.proxy.heal();
    running.end().expect(0);
    finish(&remote);
}
