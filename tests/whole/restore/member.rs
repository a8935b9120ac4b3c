//! The two runbooks of the demonstration that are needed between disasters, on its member system and a real server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::Value;

use super::cluster::Cluster;
use crate::project::{Project, Ran};
use crate::receiver::Receiver;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The member system's program, which stands beside the one under test. Built if that was tested alone.
fn member_app() -> &'static Path {
    static APP: OnceLock<PathBuf> = OnceLock::new();
    APP.get_or_init(|| {
        let app = Path::new(env!("CARGO_BIN_EXE_lifeboat")).with_file_name("member-app");
        let built = fs::metadata(&app).and_then(|meta| meta.modified());
        if built.is_ok_and(|built| newest(&repository().join("examples/app/src")) <= built) {
            return app;
        }
        let target = app.parent().and_then(Path::parent).expect("a target directory");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--package", "member-app", "--target-dir"]).arg(target);
        if app.parent().is_some_and(|profile| profile.ends_with("release")) {
            cargo.arg("--release");
        }
        Ran::of(cargo.current_dir(repository())).expect(0);
        app
    })
}

fn newest(dir: &Path) -> SystemTime {
    let entries = fs::read_dir(dir).expect("sources").flatten();
    let times = entries.map(|entry| match entry.path() {
        path if path.is_dir() => newest(&path),
        path => path.metadata().and_then(|meta| meta.modified()).expect("a time"),
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The demonstration's project on a server of its own, and somebody who takes its messages.
struct Scene {
    cluster: Cluster,
    project: Project,
    ops: Receiver,
}

impl Scene {
    fn start() -> Self {
        let scene =
            Self { cluster: Cluster::start(), project: Project::empty(), ops: Receiver::answering("200 OK") };
        scene.cluster.sql("postgres", "create database members");
        let root = scene.project.path().display().to_string();
        let edit = |text: String| {
            text.replace("/srv/lifeboat-demo/sandbox/postgres", &scene.cluster.data().display().to_string())
                .replace("/srv/lifeboat-demo/bin/member-app", &member_app().display().to_string())
                .replace("/srv/lifeboat-demo", &root)
                .replace("25432", &scene.cluster.port.to_string())
        };
        let demo = repository().join("examples/demo");
        for name in ["lifeboat.yaml", "environments/sandbox.yaml", "environments/production.yaml"]
            .into_iter()
            .chain(["runbooks/import-failure.yaml", "runbooks/payment-correction.yaml"])
        {
            scene.project.write(name, &edit(fs::read_to_string(demo.join(name)).expect("an example")));
        }
        for (name, text) in [("postgres", "any"), ("app", "any"), ("ops", &scene.ops.url())] {
            scene.project.write(&format!("secrets/{name}"), text);
        }
        for name in ["captured", "quarantine"] {
            fs::create_dir_all(scene.project.file("sandbox/imports").join(name)).expect("a directory");
        }
        fs::create_dir_all(scene.project.file("sandbox/exports")).expect("a directory");
        scene.app(&["init", "--members", "20", "--uploads", "uploads"]).expect(0);
        scene
    }

    fn app(&self, args: &[&str]) -> Ran {
        let mut app = Command::new(member_app());
        let url = format!("postgresql://postgres@127.0.0.1:{}/members", self.cluster.port);
        app.args(args).current_dir(self.project.path());
        Ran::of(app.env("DATABASE_URL", url).env("MEMBER_APP_PASSWORD", "only for this test"))
    }

    fn sql(&self, sql: &str) -> String {
        self.cluster.sql("members", sql)
    }

    /// Everything that the runbooks may change.
    fn rows(&self) -> String {
        self.sql(
            "select (select count(*) || '/' || sum(amount_cents) || '/' || md5(string_agg(p::text, ',' order by id)) from payments p),
               (select count(*) from members), (select count(*) from payment_audit), (select count(*) from import_runs),
               (select count(*) from import_rejects)",
        )
    }

    /// Runs a runbook and leaves it as soon as it waits for a person.
    fn run(&self, runbook: &str, more: &[&str]) -> Ran {
        self.project.run(&[&["run", runbook, "--env", "sandbox", "--no-wait"][..], more].concat())
    }

    fn notes(&self) -> String {
        self.project.report()["notes"].to_string()
    }

    fn messages(&self) -> Vec<String> {
        let posts = self.ops.posts();
        posts.iter().map(|post| post["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Plants a file on which the nightly job fails: a bad amount, a method that nobody knows, and no end.
    fn plant_import(&self) {
        let mut text = "reference,name,email,amount_cents,method\n".to_owned();
        for number in 1..120 {
            let rest = match number {
                70 => "\"Grant, Gwen\",gwen@example.org,12.50,transfer".to_owned(),
                90 => "Ines,ines@example.org,900,cheque".to_owned(),
                _ => format!("Payer {number},payer{number}@example.org,{},transfer", 500 + number),
            };
            text.push_str(&format!("bank-{number},{rest}\n"));
        }
        self.project.write("sandbox/imports/captured/p.csv", &(text + "bank-120,Pay"));
        let captured = "sandbox/imports/captured/p.csv";
        self.app(&["import", captured, "--log", "sandbox/imports/scheduler.log"]).expect(1);
    }
}

const FILE: [&str; 2] = ["-i", "file=p.csv"];

#[test]
fn an_import_that_has_failed_is_finished_and_the_second_run_finds_nothing_to_do() {
    let scene = Scene::start();
    scene.plant_import();
    assert_eq!(scene.sql("select count(*) from payments where reference like 'bank-%'"), "50");
    let before = scene.rows();

    // Too many bad rows are no slip.
    let ran = scene.run("import-failure", &[&FILE[..], &["-i", "max_rejected=2"]].concat()).expect(4);
    assert!(ran.all().contains("rejected <= inputs.max_rejected"), "{}", ran.all());
    assert_eq!(scene.rows(), before);

    scene.run("import-failure", &FILE).expect(0);
    assert_eq!(scene.sql("select count(*) from payments where reference like 'bank-%'"), "117");
    assert_eq!(
        scene.sql("select string_agg(line::text, ' ' order by line) from import_rejects"),
        "71 91 121"
    );
    let quarantine =
        fs::read_to_string(scene.project.file("sandbox/imports/quarantine/p.csv")).expect("a file");
    insta::assert_snapshot!("quarantine", quarantine);
    let [message] = &scene.messages()[..] else { panic!("{:?}", scene.messages()) };
    insta::assert_snapshot!("requeued", message);
    let after = scene.rows();

    scene.run("import-failure", &FILE).expect(0);
    assert!(scene.notes().contains("Nothing to do: every row of p.csv"), "{}", scene.notes());
    assert_eq!((scene.rows(), scene.messages().len()), (after, 1));
}

#[test]
fn a_captured_file_that_is_another_one_is_refused_before_anything_changes() {
    let scene = Scene::start();
    scene.plant_import();
    let captured = scene.project.file("sandbox/imports/captured/p.csv");
    let (text, before) = (fs::read_to_string(&captured).expect("a file"), scene.rows());

    fs::write(&captured, text.clone() + "er 120,payer120@example.org,7,cash\n").expect("a file");
    let ran = scene.run("import-failure", &FILE).expect(4);
    assert!(ran.all().contains("values.found == values.read"), "{}", ran.all());

    fs::write(&captured, b"PK\x03\x04\x00\xff").expect("a file");
    let ran = scene.run("import-failure", &FILE).expect(4);
    assert!(ran.all().contains("p.csv: the first line is not `reference,name"), "{}", ran.all());

    let ran = scene.run("import-failure", &["-i", "file=unknown.csv"]).expect(4);
    assert!(ran.all().contains("lines of unknown.csv"), "{}", ran.all());
    scene.run("import-failure", &["-i", "file=../p.csv"]).expect(2);
    assert_eq!((scene.rows(), scene.messages().len()), (before, 0));

    // As it was, it goes through, although the program is killed right after the rows were entered.
    fs::write(&captured, text).expect("a file");
    let mut dies = scene.project.command(&["run", "import-failure", "--env", "sandbox", "-i", "file=p.csv"]);
    let died = Ran::of(dies.env("LIFEBOAT_CRASH_AT", "AttemptEnded:5"));
    assert_ne!(died.exit, 0, "{}", died.all());
    scene.project.run(&["resume"]).expect(0);
    assert_eq!(scene.sql("select count(*) from payments where reference like 'bank-%'"), "117");
}

const DOUBLED: [&str; 4] =
    ["-i", "payments={\"card-2\": 0}", "-i", "reason=The terminal has sent card-1 twice"];

impl Scene {
    fn plant_doubled(&self) {
        for reference in ["card-1", "card-2"] {
            self.sql(&format!(
                "insert into payments (member_id, amount_cents, method, reference, entered_by) values (7, 4500, 'card', '{reference}', 1)"
            ));
            self.sql(&format!(
                "insert into payment_audit (payment, action, user_id, amount_cents) values ('{reference}', 'entered', 1, 4500)"
            ));
        }
    }

    fn original(&self) -> String {
        self.sql("select p::text from payments p where reference = 'card-2'")
    }
}

#[test]
fn a_doubled_payment_is_corrected_once_when_two_people_agree() {
    let scene = Scene::start();
    scene.plant_doubled();
    let (before, original) = (scene.rows(), scene.original());

    scene.run("payment-correction", &DOUBLED).expect(6);
    let [asked] = &scene.messages()[..] else { panic!("{:?}", scene.messages()) };
    insta::with_settings!({ filters => vec![("corrects=[0-9]+", "corrects=ID"), ("[0-9a-f]{8}", "RUN"), ("(user|entered)_by=[0-9]+", "BY")] }, {
        insta::assert_snapshot!("two_people_are_asked", asked);
    });
    scene.project.run(&["approve", "latest", "approve", "--as", "ada"]).expect(0);
    scene.project.run(&["approve", "latest", "approve", "--as", "ada"]).expect(7);
    scene.project.run(&["resume", "--no-wait"]).expect(6);
    assert_eq!(scene.rows(), before, "one is not enough");
    scene.project.run(&["approve", "latest", "approve", "--as", "sam", "-m", "one receipt"]).expect(0);
    scene.project.run(&["resume"]).expect(0);

    assert_eq!(scene.original(), original);
    let correction =
        "select c.amount_cents, p.reference, a.reason from payments c join payments p on p.id = c.corrects
        join payment_audit a on a.payment = c.reference and a.action = 'corrected'";
    assert_eq!(scene.sql(correction), "-4500|card-2|The terminal has sent card-1 twice");
    let export = fs::read_to_string(scene.project.file("sandbox/exports/payments.csv")).expect("a file");
    assert!(export.contains("correction-card-2,7,-4500,card,card-2,"), "{export}");

    // Again, and again with another idea of what it should have been.
    let after = scene.rows();
    scene.run("payment-correction", &DOUBLED).expect(0);
    assert!(
        scene.notes().contains("Nothing to do: corrected before, by correction-card-2"),
        "{}",
        scene.notes()
    );
    let otherwise = ["-i", "payments={\"card-2\": 100}", "-i", "reason=Another idea"];
    let ran = scene.run("payment-correction", &otherwise).expect(4);
    assert!(ran.all().contains("card-2 was corrected otherwise"), "{}", ran.all());
    assert_eq!(scene.rows(), after);

    // The script that was kept takes it back, once.
    let kept = fs::read_dir(scene.project.file("sandbox/exports/reverse")).expect("a directory").flatten();
    let [script] = &kept.map(|entry| entry.path()).collect::<Vec<_>>()[..] else { panic!("one script") };
    let script = fs::read_to_string(script).expect("a script");
    scene.cluster.psql("members", &["-c", &script]).expect(0);
    assert_eq!(scene.rows(), before);
    assert_ne!(scene.cluster.psql("members", &["-c", &script]).exit, 0);
}

#[test]
fn what_is_no_such_mistake_is_not_corrected_and_nobody_is_asked() {
    let scene = Scene::start();
    scene.plant_doubled();
    let before = scene.rows();
    let refused = |payments: &str, more: &[&str], code: &str, why: &str| {
        let payments = format!("payments={payments}");
        let ran = scene.run(
            "payment-correction",
            &[&["-i", &payments, "-i", "reason=Somebody said so"][..], more].concat(),
        );
        assert_eq!(ran.exit, 4, "{}", ran.all());
        assert!(ran.all().contains(code) && ran.all().contains(why), "no {why}: {}", ran.all());
        assert_eq!(scene.rows(), before);
    };
    refused(r#"{"card-9": 0}"#, &[], "LB1020", "card-9 is no payment; ");
    refused(r#"{"card-2": 4500}"#, &[], "LB1020", "card-2 is what it should be; ");
    refused(r#"{"card-2": -1}"#, &[], "LB1020", "card-2 cannot have been less than 0; ");
    refused(r#"{"card-1": 0}"#, &[], "LB1020", "card-1 has no earlier payment like it; ");
    refused(r#"{"card-1": 0, "card-9": 1}"#, &[], "LB1020", "card-9 is no payment; card-1 has no earlier");
    refused("{}", &[], "", "row_count > 0");
    refused(r#"{"card-2": 0}"#, &["-i", "max_rows=1"], "LB1820", "more than 1 rows would be changed");
    assert_eq!(scene.messages(), [""; 0]);

    // A wrong amount needs no pair. Rejected, it is not made.
    let wrong = ["-i", "payments={\"card-1\": 450, \"card-2\": 4000}", "-i", "reason=A digit too many"];
    let ran = scene.run("payment-correction", &[&wrong[..], &["--as", "ada"]].concat()).expect(7);
    assert!(ran.stderr.contains("LB0371"), "there are two who may agree, and she starts it: {}", ran.stderr);
    scene.run("payment-correction", &wrong).expect(6);
    scene.project.run(&["reject", "latest", "approve", "--as", "sam", "-m", "ask the bank first"]).expect(0);
    scene.project.run(&["resume"]).expect(4);
    assert_eq!(scene.rows(), before);
    let questions: Value = scene.project.report()["questions"].clone();
    assert_eq!(questions[0]["answer"]["choice"], "reject", "{questions}");
}
