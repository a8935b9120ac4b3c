//! A drill on a server that it did not make: afterwards its databases are as they were, whatever ended the program meanwhile.

use lifeboat_engine::model::event::EventKind;

use super::cluster::Cluster;
use super::machine::postgres_bin;
use crate::project::{Project, Ran};

const STEPS: &str = "
- { id: fresh, uses: postgres.create_database, with: { cluster: db, database: fresh } }
- { id: new, uses: postgres.create_database, with: { cluster: db, database: members_new } }
- { id: swap, uses: postgres.swap_database, with: { cluster: db, database: members, with: members_new } }
- { id: aside, uses: postgres.drop_database, with: { cluster: db, database: spare } }";

/// A server that somebody else has made, with two databases.
struct Foreign {
    cluster: Cluster,
    listed: String,
}

impl Foreign {
    fn start() -> Self {
        let cluster = Cluster::start();
        for name in ["members", "spare"] {
            cluster.sql("postgres", &format!("create database {name}"));
        }
        let listed = list(&cluster);
        Self { cluster, listed }
    }

    fn project(&self, steps: &str) -> Project {
        let project = Project::with_steps(steps);
        project.write(
            "environments/sandbox.yaml",
            &format!(
                "environment: sandbox\nresources:\n  db: {{ kind: postgres, bin_dir: {}, socket_dir: {}, port: {} }}\n",
                postgres_bin().display(),
                self.cluster.dir.path().display(),
                self.cluster.port
            ),
        );
        project
    }

    fn assert_untouched(&self, told: &str) {
        assert_eq!(list(&self.cluster), self.listed, "{told}");
    }
}

fn list(cluster: &Cluster) -> String {
    let sql = "select string_agg(format('%s %s %s', oid, datname, datallowconn), ', ' order by oid) from pg_database";
    cluster.sql("postgres", sql)
}

#[test]
fn a_drill_leaves_the_databases_of_a_foreign_server_and_says_what_it_removed() {
    let foreign = Foreign::start();
    let project = foreign.project(STEPS);
    let ran = project.run(&["drill", "job", "--env", "sandbox"]).expect(0);
    foreign.assert_untouched(&ran.all());
    let report = project.report();
    let created = report["created"].as_array().expect("a list");
    let fates: Vec<_> = created.iter().map(|made| made["fate"].as_str().unwrap_or_default()).collect();
    assert_eq!(fates, ["removed"; 4], "{report:#}");
    let text = project.run(&["report"]).expect(0).all();
    // Wherever a table breaks its lines.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for told in ["database `fresh` on `db`", "does not exist", "`spare` has its name again"] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

#[test]
fn a_recovery_and_a_drill_that_keeps_leave_what_they_made() {
    let foreign = Foreign::start();
    let steps = "- { id: fresh, uses: postgres.create_database, with: { cluster: db, database: NAME } }";
    for (name, command) in
        [("one", ["run", "job", "--env"].as_slice()), ("two", &["drill", "job", "--keep", "--env"])]
    {
        let project = foreign.project(&steps.replace("NAME", name));
        let args: Vec<_> = command.iter().copied().chain(["sandbox"]).collect();
        project.run(&args).expect(0);
        let text = project.run(&["report"]).expect(0).all();
        assert!(text.contains(&format!("database `{name}` on `db` (on `db`)")), "{text}");
    }
    assert!(list(&foreign.cluster).contains(" one ") && list(&foreign.cluster).contains(" two "));
}

/// Killed at one commit after the other; then finished, or ended by a person.
#[test]
fn kill_9_at_any_commit_of_a_drill_leaves_the_databases_after_resume() {
    let foreign = Foreign::start();
    let every = if std::env::var_os("LIFEBOAT_TEST_LONG").is_some() { 1 } else { 4 };
    for (round, nth) in (2..).step_by(every).enumerate() {
        let project = foreign.project(STEPS);
        let point = if round % 2 == 0 { "AfterCommit" } else { "BeforeCommit" };
        let mut drill = project.command(&["drill", "job", "--env", "sandbox"]);
        let died = Ran::of(drill.env("LIFEBOAT_CRASH_AT", format!("{point}:{nth}")));
        if died.exit == 0 {
            assert!(nth > 20, "only {nth} commits");
            foreign.assert_untouched("never killed");
            return;
        }
        let told = format!("killed at {point}:{nth}");
        let exit = match round % 3 {
            0 => {
                project.run(&["abort", "--reason", "enough"]);
                4
            }
            _ => 0,
        };
        let resumed = project.run(&["resume"]);
        assert!(resumed.exit == exit || ended(&project), "{told}: {}", resumed.all());
        foreign.assert_untouched(&format!("{told}: {}", resumed.all()));
    }
}

fn ended(project: &Project) -> bool {
    let (_, events) = lifeboat_engine::journal::read(&project.run_dir()).expect("a journal");
    events.iter().any(|event| matches!(event.kind, EventKind::RunFinished { .. }))
}
