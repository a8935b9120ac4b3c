//! `kill -9` of the program while it changes data: after `resume` the change was made exactly once.

use super::cluster::Cluster;
use super::machine::postgres_bin;
use crate::project::{Project, Ran, until};

/// A server with one table.
struct Ledger(Cluster);

impl Ledger {
    fn start() -> Self {
        let ledger = Self(Cluster::start());
        ledger.sql("create table ledger (id int primary key, amount int not null)");
        ledger.sql("insert into ledger values (1, 0)");
        ledger
    }

    fn sql(&self, sql: &str) -> String {
        self.0.sql("postgres", sql)
    }

    /// A project whose only step adds one to the only row and then takes its time.
    fn project(&self) -> Project {
        let project = Project::with_steps(
            "- id: add\n  uses: postgres.change\n  with:\n    cluster: db\n    tables: [ledger]\n    max_rows: 1\n    \
             lock_timeout: 60s\n    statements:\n      \
             - { sql: update ledger set amount = amount + 1 where id = $1, params: [1] }\n      \
             - { sql: select pg_sleep(2) }",
        );
        project.write(
            "environments/sandbox.yaml",
            &format!(
                "environment: sandbox\nresources:\n  db: {{ kind: postgres, bin_dir: {}, socket_dir: {}, port: {} }}\n",
                postgres_bin().display(),
                self.0.dir.path().display(),
                self.0.port
            ),
        );
        project
    }

    fn assert_changed_once(&self) {
        assert_eq!(self.sql("select amount from ledger"), "1");
        let kept =
            "select (select count(*) from lifeboat.changes), (select count(*) from lifeboat.changed_rows)";
        assert_eq!(self.sql(kept), "1|1");
        assert_eq!(self.sql("select count(*) from pg_trigger where tgname like 'zzz_lifeboat%'"), "0");
    }
}

#[test]
fn kill_9_within_a_change_leaves_nothing_and_resume_makes_it_once() {
    let ledger = Ledger::start();
    let project = ledger.project();
    let running = project.start(&["run", "job", "--env", "sandbox"]);
    let asleep = "select count(*) from pg_stat_activity where application_name = 'lifeboat' and wait_event = 'PgSleep'";
    until("the row is changed and not committed", || ledger.sql(asleep) == "1");
    running.signal("KILL");
    running.end();
    assert_eq!(ledger.sql("select amount from ledger"), "0");
    // What the killed program began still holds its locks until the server notices; the change waits for them.
    project.run(&["resume"]).expect(0);
    ledger.assert_changed_once();
}

#[test]
fn kill_9_between_the_commit_and_the_journal_repeats_nothing() {
    let ledger = Ledger::start();
    let project = ledger.project();
    let mut dies = project.command(&["run", "job", "--env", "sandbox"]);
    let died = Ran::of(dies.env("LIFEBOAT_CRASH_AT", "AttemptEnded:1"));
    assert_ne!(died.exit, 0, "{}", died.all());
    ledger.assert_changed_once();
    assert_ne!(project.report()["outcome"]["state"], "succeeded");
    project.run(&["resume"]).expect(0);
    ledger.assert_changed_once();
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}
