//! The real program, killed at every named place, again and again, until its run has ended all the same.
//!
//! `LIFEBOAT_TEST_LONG=1` kills it several hundred times: at every place for the first, second, … time, in every scene, and
//! at random moments.

mod scene;
mod trace;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use lifeboat_engine::crash::Point;

use crate::project::Project;
use scene::Scene;
use trace::Trace;

/// When the program is to be killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// By itself, at the nth time at a place.
    At(Point, u64),
    /// From outside, after so many milliseconds.
    After(u64),
}

/// How often a run is gone on with at most.
const MOST: usize = 60;

/// How one invocation of the program ended.
#[derive(Debug)]
enum Ended {
    Killed,
    Left(String),
}

/// One run that is cut off again and again.
struct Trial {
    scene: Scene,
    project: Project,
    /// The places where it died.
    died: Vec<String>,
}

impl Trial {
    fn new(scene: Scene) -> Self {
        Self { scene, project: scene::project(), died: Vec::new() }
    }

    fn invoke(&mut self, args: &[&str], kill: Option<Kill>) -> Ended {
        let mut command = self.project.command(args);
        if let Some(Kill::At(point, nth)) = kill {
            command.env("LIFEBOAT_CRASH_AT", format!("{}:{nth}", point.name()));
        }
        let after = match kill {
            Some(Kill::After(ms)) => Some(Duration::from_millis(ms)),
            _ => None,
        };
        let ended = ended(&mut command, after);
        if let (Ended::Killed, Some(kill)) = (&ended, kill) {
            self.died.push(match kill {
                Kill::At(point, _) => point.name(),
                Kill::After(_) => "somewhere".to_owned(),
            });
        }
        ended
    }

    /// Begins the run or goes on with it.
    fn go_on(&mut self, kill: Option<Kill>) -> Ended {
        let scene = self.scene;
        match Trace::read(&self.project) {
            None => self.invoke(scene.begin(), kill),
            Some(trace) => self.invoke(&["resume", &trace.run.to_string(), "--no-wait"], kill),
        }
    }

    /// Does what the people would do: whatever is asked or held is answered in the same way, however often it is asked.
    /// The first of their commands dies as well, in the middle of leaving its request.
    fn decide(&mut self, trace: &Trace) {
        let run = trace.run.to_string();
        let mut kill = (!self.died.is_empty()).then_some(Kill::At(Point::FileRenamed, 1));
        if !trace::decisions(&trace.events).contains("note by the way") {
            self.said(&["note", &run, "by the way"], kill.take());
            self.said(&["pause", &run], None);
        }
        for step in trace.asking() {
            let amount = ["answer", &run, &step, "41"];
            let tick = ["answer", &run, &step, "done", "--point", "1"];
            let sign = ["approve", &run, &step];
            let decision: &[&str] = match step.as_str() {
                "amount" => &amount,
                "hands" => &tick,
                _ => &sign,
            };
            self.said(decision, kill.take());
        }
        for step in trace.held() {
            let skip = ["skip", &run, &step, "--reason", "not needed"];
            let done = ["skip", &run, &step, "--done", "--reason", "done by hand"];
            let retry = ["retry", &run, &step];
            self.project.write("mended", "");
            let decision: &[&str] = match step.as_str() {
                "hopeless" => &skip,
                "by_hand" => &done,
                _ => &retry,
            };
            self.said(decision, kill.take());
        }
    }

    /// A person's command, repeated if it was killed: it may have been left in the inbox twice, or not at all.
    fn said(&mut self, args: &[&str], kill: Option<Kill>) {
        if matches!(self.invoke(args, kill), Ended::Killed) {
            self.invoke(args, None);
        }
    }

    /// Goes on with the run until it has ended, and dies on the way as often as it is told.
    ///
    /// A place that is not reached before people are needed is tried again after they have helped.
    fn run_to_the_end(&mut self, kills: impl IntoIterator<Item = Kill>) -> Trace {
        let mut kills = kills.into_iter().peekable();
        let mut told = String::new();
        for _ in 0..MOST {
            let trace = match self.go_on(kills.peek().copied()) {
                Ended::Killed => {
                    kills.next();
                    Trace::read(&self.project)
                }
                Ended::Left(text) => {
                    told = text;
                    let trace = Trace::read(&self.project).expect("a run that was declared");
                    self.decide(&trace);
                    Some(trace)
                }
            };
            if let Some(trace) = trace.filter(Trace::has_ended) {
                return trace;
            }
        }
        panic!("{:?} does not end, killed at {:?}:\n{told}", self.scene, self.died);
    }

    /// Holds what is left against what an undisturbed run leaves.
    fn verify(&self, trace: &Trace, reference: &Trace) {
        let told = format!("{:?}, killed at {:?}", self.scene, self.died);
        trace.verify(&self.project);
        let (found, expected) = (trace.canon(), reference.canon());
        assert_eq!(
            serde_json::to_string_pretty(&found).expect("plain data"),
            serde_json::to_string_pretty(&expected).expect("plain data"),
            "{told}"
        );
        assert_eq!(trace::decisions(&trace.events), trace::decisions(&reference.events), "{told}");
        // An ended run stands in nobody's way, whatever was left of its locks, and every view knows its end.
        self.project.run(&["resume", &trace.run.to_string()]).expect(7);
        let listed = self.project.run(&["runs", "--format", "json"]).expect(0).json();
        let outcome = self.project.report()["outcome"]["state"].clone();
        let own = listed.as_array().or(listed["runs"].as_array()).expect("runs").iter();
        let own: Vec<_> = own.filter(|run| run["run"] == trace.run.to_string()).collect();
        assert!(own.len() == 1 && own[0]["outcome"] == outcome, "{told}: {listed} but {outcome}");
    }
}

/// Runs a command, kills it from outside if it is to be, and says how it ended.
fn ended(command: &mut Command, after: Option<Duration>) -> Ended {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    if let Some(after) = after {
        std::thread::sleep(after);
        child.kill().expect("a child of ours");
    }
    let output = child.wait_with_output().expect("a child of ours");
    match (output.status.signal(), output.status.code()) {
        (Some(9), _) => Ended::Killed,
        // The run has ended well or not, or waits for people, or a person asks for what has been done already.
        (_, Some(0 | 4 | 6 | 7)) => Ended::Left(String::from_utf8_lossy(&output.stderr).into_owned()),
        _ => panic!("{output:?}"),
    }
}

/// A run that nothing disturbs.
fn reference(scene: Scene) -> Trace {
    let mut trial = Trial::new(scene);
    let trace = trial.run_to_the_end([]);
    trace.verify(&trial.project);
    trace
}

fn is_long() -> bool {
    std::env::var_os("LIFEBOAT_TEST_LONG").is_some_and(|value| value != "0")
}

/// Places that only the beginning of a run passes, one after the other: a run that dies there was never declared, and the
/// next one begins afresh.
const BEGINNING: [Point; 8] = [
    Point::LocksTaken,
    Point::LockRemembered,
    Point::RunDirMade,
    Point::RunDirComplete,
    Point::OwnerLocked,
    Point::JournalLaidOut,
    Point::JournalNamed,
    Point::RunDeclared,
];

/// Places that every process passes, with the time at which it dies there: some commits of progress lie between two kills.
const MIDDLE: [(Point, u64); 14] = [
    (Point::SurvivorsEnded, 1),
    (Point::JournalOpened, 1),
    (Point::FileWritten, 1),
    (Point::FileRenamed, 1),
    (Point::TurnCommitted, 2),
    (Point::ChildStarted, 3),
    (Point::BeforeCommit, 3),
    (Point::ChildEnded, 2),
    (Point::AttemptLaunched, 3),
    (Point::AfterCommit, 4),
    (Point::AttemptEnded, 2),
    (Point::TurnPerformed, 3),
    (Point::ChildStarted, 1),
    (Point::AfterCommit, 2),
];

impl Scene {
    /// Places that only this run passes, and at the end one of those that a run passes once.
    fn own(self) -> &'static [Point] {
        match self {
            Self::Success => &[
                Point::IndexOpened,
                Point::IndexUpdated,
                Point::RequestForgotten,
                Point::AlwaysLaunched,
                Point::LockForgotten,
            ],
            Self::Undone => {
                &[Point::UndoLaunched, Point::UndoLaunched, Point::AlwaysLaunched, Point::RunFinished]
            }
            Self::Drill => &[Point::AlwaysLaunched, Point::ThingRemoved, Point::ReportWritten],
        }
    }
}

#[test]
fn a_run_that_dies_at_every_named_place_comes_to_the_same_end() {
    let mut reached = BTreeSet::new();
    for scene in Scene::ALL {
        let reference = reference(scene);
        let mut trial = Trial::new(scene);
        let beginning = BEGINNING.into_iter().map(|point| Kill::At(point, 1));
        let middle = MIDDLE.into_iter().map(|(point, nth)| Kill::At(point, nth));
        let own = scene.own().iter().map(|point| Kill::At(*point, 1));
        let kills: Vec<_> = match scene {
            Scene::Drill => beginning.chain(own).collect(),
            _ => beginning.chain(middle).chain(own).collect(),
        };
        let trace = trial.run_to_the_end(kills);
        trial.verify(&trace, &reference);
        reached.extend(trial.died);
    }
    let missed: Vec<_> =
        Point::ALL.into_iter().map(Point::name).filter(|name| !reached.contains(name)).collect();
    assert!(missed.is_empty(), "nothing died at {missed:?}");
}

/// A number that follows from a seed, as random as a test needs.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Every place for the first, second, … time in every scene, then whatever comes, the resumed processes included.
#[test]
fn several_hundred_kills_change_nothing() {
    if !is_long() {
        return;
    }
    let mut kills = 0;
    for scene in Scene::ALL {
        let reference = reference(scene);
        for (at, point) in Point::ALL.into_iter().enumerate() {
            let mut trial = Trial::new(scene);
            let mut seed = at as u64;
            let others = (0..6).map(|_| {
                let other = MIDDLE[random(&mut seed) as usize % MIDDLE.len()].0;
                Kill::At(other, 1 + random(&mut seed) % 9)
            });
            let again = (1..4).map(|nth| Kill::At(point, nth));
            let trace = trial.run_to_the_end(again.chain(others.collect::<Vec<_>>()));
            trial.verify(&trace, &reference);
            kills += trial.died.len();
        }
        for round in 0..10 {
            let mut trial = Trial::new(scene);
            let mut seed = 1000 + round;
            let moments: Vec<_> = (0..8).map(|_| Kill::After(20 + random(&mut seed) % 600)).collect();
            let trace = trial.run_to_the_end(moments);
            trial.verify(&trace, &reference);
            kills += trial.died.len();
        }
    }
    eprintln!("{kills} kills");
    assert!(kills >= 200, "only {kills} kills");
}
