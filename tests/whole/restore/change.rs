//! `kill -9` of the program while it changes data: after `resume` the change was made exactly once.

use std::fs;
use std::path::PathBuf;

use super::machine::{command, free_port, hand_over, postgres_bin};
use crate::project::{Project, Ran, until};

/// A server with one table. Ended with the value.
struct Ledger {
    dir: tempfile::TempDir,
    port: u16,
}

impl Ledger {
    fn start() -> Self {
        let ledger = Self { dir: tempfile::tempdir_in("/tmp").expect("a directory"), port: free_port() };
        hand_over(ledger.dir.path());
        let initdb = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=trust", "-D"];
        ledger.program("initdb", &initdb).expect(0);
        let conf = ledger.data().join("postgresql.conf");
        let text = fs::read_to_string(&conf).expect("initdb wrote it");
        let dir = ledger.dir.path().display();
        let port = ledger.port;
        let settings = format!(
            "\nport = {port}\nlisten_addresses = ''\nunix_socket_directories = '{dir}'\nfsync = off\nshared_buffers = 16MB\n"
        );
        fs::write(&conf, text + &settings).expect("settings");
        let log = ledger.dir.path().join("log");
        ledger.program("pg_ctl", &["-s", "-w", "-l", &log.display().to_string(), "start", "-D"]).expect(0);
        ledger.sql("create table ledger (id int primary key, amount int not null)");
        ledger.sql("insert into ledger values (1, 0)");
        ledger
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a program whose last argument is the data directory.
    fn program(&self, name: &str, args: &[&str]) -> Ran {
        let mut program = command(postgres_bin().join(name), self.dir.path());
        // A server keeps the descriptors of whoever starts it.
        let out = fs::File::create(self.dir.path().join("out")).expect("a file");
        program.args(args).arg(self.data()).stdout(out.try_clone().expect("a descriptor")).stderr(out);
        let status = program.status().expect("it runs");
        Ran { exit: status.code().unwrap_or(-1), stdout: String::new(), stderr: String::new() }
    }

    fn sql(&self, sql: &str) -> String {
        let mut psql = command(postgres_bin().join("psql"), self.dir.path());
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(self.dir.path());
        psql.args(["-p", &self.port.to_string(), "-c", sql]);
        Ran::of(&mut psql).expect(0).stdout.trim().to_owned()
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
                self.dir.path().display(),
                self.port
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

impl Drop for Ledger {
    fn drop(&mut self) {
        self.program("pg_ctl", &["-s", "-w", "-m", "immediate", "stop", "-D"]);
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
