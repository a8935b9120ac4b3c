//! The language seen from outside: every file of `tests/corpus/invalid` breaks one rule, and the snapshot beside it
//! is what a person reads. The step kinds are stand-ins; the language does not depend on which ones there are.

#[path = "corpus/fences.rs"]
mod fences;
#[path = "corpus/kinds.rs"]
mod kinds;
#[path = "corpus/projects.rs"]
mod projects;
#[path = "corpus/schema.rs"]
mod schema;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kinds::registry;
use lifeboat_engine::compile;
use lifeboat_engine::diagnostic::{Diagnostics, Source, Style, codes, render};
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::{Need, NeedOn, OnError};
use lifeboat_engine::project::{Project, RunRequest, check_all};
use lifeboat_engine::spec::{EnvironmentSpec, ProjectSpec, RunbookSpec};
use lifeboat_engine::step::Registry;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Map, Value, json};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus")
}

fn project() -> Project {
    let project = Project::load(&corpus().join("project/environments")).unwrap();
    assert!(project.problems.is_empty(), "{}", render(&project.problems, Style::Plain));
    project
}

fn files(folder: &str) -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> = std::fs::read_dir(corpus().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    files.sort();
    files
}

fn check_file(project: &Project, name: &str, path: &Path) -> Diagnostics {
    let mut out = Diagnostics::new();
    if let Some(source) = Source::read(path, &format!("{name}.yaml"), &mut out)
        && let Some(spec) = RunbookSpec::read(&source, &project.spec.dir, &mut out)
    {
        compile::check(project, &spec, &registry(), &mut out);
    }
    out.sort();
    out
}

/// The files that show how several mistakes are told together.
const SEVERAL: &[&str] = &["several", "several_in_groups"];

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(corpus().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn every_broken_rule_is_told_with_place_and_help() {
    let project = project();
    let mut complaints = Vec::new();
    for (name, path) in files("invalid") {
        let found = check_file(&project, &name, &path);
        snapshot(&name, &render(&found, Style::Plain));
        let codes: BTreeSet<_> = found.iter().map(|diagnostic| diagnostic.code.id).collect();
        let messages: BTreeSet<_> = found.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
        if (codes.len() != 1 || messages.len() != 1) && !SEVERAL.contains(&name.as_str()) {
            complaints.push(format!("{name} breaks one rule, not {codes:?}: {messages:?}"));
        }
        let silent = found.iter().find(|diagnostic| diagnostic.help.is_none());
        if let Some(silent) = silent.filter(|_| !SEVERAL.contains(&name.as_str())) {
            complaints.push(format!("{name}: `{}` does not say what to do", silent.message));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn valid_runbooks_have_no_problems() {
    let project = project();
    for (name, path) in files("valid") {
        let found = check_file(&project, &name, &path);
        assert!(found.is_empty(), "{}", render(&found, Style::Plain));
    }
}

#[test]
fn valid_runbooks_compile_in_every_environment_and_mode() {
    let (_dir, project) = full_project();
    let registry = registry();
    let mut plans = 0;
    for (name, _) in files("valid") {
        let text = std::fs::read_to_string(corpus().join(format!("valid/{name}.yaml"))).unwrap();
        let title = text.lines().find_map(|line| line.strip_prefix("runbook: ")).unwrap();
        let spec = project.runbook(title).unwrap();
        let inputs = json!({ "release": "v1.2" });
        let has_release = spec.inputs.iter().any(|input| input.decl.name == "release");
        let inputs = if has_release { inputs.as_object().unwrap().clone() } else { Map::new() };
        for environment in &spec.environments {
            for mode in [Mode::Recovery, Mode::Drill] {
                let incident_at = Some("2026-11-21T04:12:00+01:00".parse().unwrap());
                let environment = environment.value.as_str();
                let request = RunRequest { runbook: title, environment, mode, inputs: &inputs, incident_at };
                match project.compile(&request, &registry) {
                    Ok(_) => plans += 1,
                    // Drills are kept out of protected environments, whatever the runbook.
                    Err(found) if environment == "production" && mode == Mode::Drill => {
                        assert!(
                            found.iter().all(|it| it.code == codes::LB0140),
                            "{name}: {}",
                            render(&found, Style::Plain)
                        );
                    }
                    Err(found) => panic!("{name} in {environment}: {}", render(&found, Style::Plain)),
                }
            }
        }
    }
    assert!(plans >= 100, "{plans}");
}

#[test]
fn several_mistakes_of_a_file_are_told_in_one_pass_in_order() {
    let found = check_file(&project(), "several", &corpus().join("invalid/several.yaml"));
    let codes: Vec<_> = found.iter().map(|diagnostic| diagnostic.code.id).collect();
    for code in ["LB0104", "LB0108", "LB0113", "LB0120", "LB0124", "LB0125", "LB0127", "LB0134"] {
        assert!(codes.contains(&code), "{code} is not in {codes:?}");
    }
    let places: Vec<_> =
        found.iter().map(|diagnostic| diagnostic.place.as_ref().unwrap().span.start).collect();
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn every_mistake_of_an_environment_is_told() {
    for (name, path) in files("invalid_environments") {
        let mut out = Diagnostics::new();
        if let Some(source) = Source::read(&path, &format!("{name}.yaml"), &mut out) {
            EnvironmentSpec::read(&source, Path::new("/project/environments"), &mut out);
        }
        out.sort();
        assert!(!out.is_empty(), "{name}");
        let text = render(&out, Style::Plain);
        assert!(!text.contains("hunter2"), "{text}");
        snapshot(&format!("environment_{name}"), &text);
    }
}

#[test]
fn every_mistake_of_a_project_is_told() {
    for (name, path) in files("invalid_projects") {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(&path, dir.path().join("lifeboat.yaml")).unwrap();
        let mut out = Diagnostics::new();
        ProjectSpec::read(dir.path(), &mut out);
        out.sort();
        assert!(!out.is_empty(), "{name}");
        snapshot(&format!("project_{name}"), &render(&out, Style::Plain));
    }
}

/// Codes of the language that no file of the corpus can show, with where they are shown instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("LB0116", "a build without a kind of step: `a_body_that_this_build_does_not_have_is_refused`"),
    ("LB0140", "a plan: `drills_and_copies_keep_away_from_protected_systems`"),
    ("LB0142", "a plan: `missing_inputs_are_told_together`"),
    ("LB0147", "ten million edges: too large a file"),
    ("LB0201", "no project: `tests/whole/language.rs`"),
    ("LB0202", "a file that cannot be read: `tests/whole/hostile.rs`"),
    ("LB0206", "two files of one name: several files"),
    ("LB0207", "what was typed: `missing_inputs_are_told_together`"),
    ("LB0209", "a plan for another host"),
    ("LB0370", "an approval and the people of a project: `tests/whole/refusals.rs`"),
];

#[test]
fn every_code_of_the_language_is_in_a_snapshot() {
    let snapshots = std::fs::read_dir(corpus().join("snapshots")).unwrap();
    let texts: Vec<_> =
        snapshots.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let shown = |id: &str| texts.iter().any(|text| text.contains(&format!("[{id}]")));
    let unshown: Vec<_> = codes::ALL.iter().map(|code| code.id).filter(|id| !shown(id)).collect();
    let listed: Vec<_> = ELSEWHERE.iter().map(|(id, _)| *id).collect();
    let missing: Vec<_> = unshown.iter().filter(|id| !listed.contains(id)).collect();
    assert!(missing.is_empty(), "no snapshot shows {missing:?}");
    assert!(listed.iter().all(|id| *id == "LB0140" || !shown(id)), "a snapshot shows one of {listed:?}");
}

#[test]
fn a_body_that_this_build_does_not_have_is_refused() {
    let text = "runbook: x\nenvironments: [staging]\nsteps: [{ id: a, manual: Look }]\n";
    let (project, mut out) = (project(), Diagnostics::new());
    let source = Source::from_bytes("x.yaml", text.as_bytes().to_vec(), &mut out).unwrap();
    let spec = RunbookSpec::read(&source, &project.spec.dir, &mut out).unwrap();
    compile::check(&project, &spec, &Registry::new(), &mut out);
    let text = render(&out, Style::Plain);
    assert!(
        text.contains("error[LB0116]: `manual` is not supported by this version\n --> x.yaml:3:18"),
        "{text}"
    );
}

#[test]
fn environments_show_no_secret_and_every_mistake() {
    let mut out = Diagnostics::new();
    let source = Source::read(&corpus().join("environments/broken.yaml"), "broken.yaml", &mut out).unwrap();
    EnvironmentSpec::read(&source, Path::new("/project/environments"), &mut out);
    out.sort();
    let text = render(&out, Style::Plain);
    assert!(!text.contains("hunter2"), "{text}");
    snapshot("environment_broken", &text);
}

/// A project on disk with the valid runbooks of the corpus.
fn full_project() -> (tempfile::TempDir, Project) {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["environments", "runbooks"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    std::fs::copy(corpus().join("project/lifeboat.yaml"), dir.path().join("lifeboat.yaml")).unwrap();
    for (name, path) in files("project/environments") {
        std::fs::copy(path, dir.path().join(format!("environments/{name}.yaml"))).unwrap();
    }
    for (name, path) in [files("valid"), files("project/runbooks")].concat() {
        std::fs::copy(path, dir.path().join(format!("runbooks/{name}.yaml"))).unwrap();
    }
    let project = Project::load(dir.path()).unwrap();
    (dir, project)
}

fn compile_in(
    project: &Project,
    runbook: &str,
    environment: &str,
    mode: Mode,
) -> Result<compile::Compiled, Diagnostics> {
    let inputs = json!({"release": "v1.2"}).as_object().unwrap().clone();
    let inputs = if runbook == "restore" { inputs } else { Map::new() };
    let incident_at = Some("2026-11-21T04:12:00+01:00".parse().unwrap());
    project.compile(&RunRequest { runbook, environment, mode, inputs: &inputs, incident_at }, &registry())
}

#[test]
fn the_example_of_the_design_compiles() {
    let (_dir, project) = full_project();
    assert!(check_all(&project, &registry()).is_empty());
    let plan = compile_in(&project, "restore", "staging", Mode::Recovery).unwrap().plan;
    assert_eq!(plan.inputs["target_time"], "2026-11-21T03:12:00Z");
    let step = |id: &str| plan.steps.iter().find(|step| step.id.as_str() == id).unwrap();
    let needs = |id: &str| step(id).needs.iter().map(|need| need.step.to_string()).collect::<Vec<_>>();
    assert_eq!(needs("base"), ["choose"]);
    assert_eq!(needs("uploads"), ["choose"]);
    assert_eq!(needs("backend"), ["promote", "uploads"]);
    assert_eq!(needs("announce"), Vec::<String>::new());
    assert_eq!(step("announce").on_error, OnError::Continue);
    assert_eq!(step("base").on_error, OnError::Hold);
    assert_eq!(step("base").destroys, ["`db`: the data directory"]);
    assert_eq!(
        (step("base").reads.clone(), step("base").writes.clone()),
        (vec!["backups".into()], vec!["db".into()])
    );
    assert_eq!(step("backend").with["env"]["DATABASE_URL"]["database"], "members");
    assert_eq!(step("promote").place, "runbooks/restore.yaml:44");
    let drill = compile_in(&project, "restore", "staging", Mode::Drill).unwrap().plan;
    assert!(drill.steps.iter().filter(|step| !step.always).all(|step| step.on_error == OnError::Abort));
    assert_ne!(drill.digest(), plan.digest());
}

#[test]
fn groups_start_and_end_as_one_place() {
    let (_dir, project) = full_project();
    let plan = compile_in(&project, "order", "staging", Mode::Recovery).unwrap().plan;
    let needs = |id: &str| {
        let step = plan.steps.iter().find(|step| step.id.as_str() == id).unwrap();
        step.needs.iter().map(|need| (need.step.to_string(), need.on)).collect::<Vec<_>>()
    };
    let on = |id: &str, on| (id.to_owned(), on);
    assert_eq!(needs("left_one"), [on("one", NeedOn::Success)]);
    assert_eq!(needs("left_two"), [on("left_one", NeedOn::Success)]);
    assert_eq!(needs("free"), [on("one", NeedOn::Success)]);
    assert_eq!(
        needs("late"),
        [on("right", NeedOn::Success), on("left_one", NeedOn::Any), on("left_two", NeedOn::Any)]
    );
    assert_eq!(needs("after"), [on("free", NeedOn::Success), on("late", NeedOn::Success)]);
    assert_eq!(needs("rescue"), [on("after", NeedOn::Failure)]);
    assert_eq!(needs("at_once"), []);
    let left_two = plan.steps.iter().find(|step| step.id.as_str() == "left_two").unwrap();
    let conditions: Vec<_> = left_two.conditions.iter().map(|condition| condition.of.as_str()).collect();
    assert_eq!(conditions, ["left", "left_two"]);
}

#[test]
fn called_runbooks_become_steps_of_the_caller() {
    let (_dir, project) = full_project();
    let plan = compile_in(&project, "calls", "staging", Mode::Recovery).unwrap().plan;
    let ids: Vec<_> = plan.steps.iter().map(|step| step.id.as_str()).collect();
    let north =
        ["north/first", "north/inner/write", "north/inner/ask", "north/inner/bring_up", "north/inner/tidy"];
    let rescue = north.map(|id| id.replace("north", "rescue"));
    let rescue: Vec<_> = rescue.iter().map(String::as_str).collect();
    let south = ["south/write", "south/ask", "south/bring_up", "south/tidy"];
    assert_eq!(
        ids,
        [&["start"], &north[..], &south[..], &["read"], &rescue[..], &["report/say", "last"]].concat()
    );
    let step = |id: &str| plan.steps.iter().find(|step| step.id.as_str() == id).unwrap();
    let needs = |id: &str| {
        step(id).needs.iter().map(|need| format!("{} {:?}", need.step, need.on)).collect::<Vec<_>>()
    };
    assert_eq!(needs("north/first"), ["start Success"]);
    assert_eq!(needs("north/inner/write"), ["north/first Success"]);
    assert_eq!(needs("north/inner/bring_up"), ["north/inner/write Success"]);
    assert_eq!(needs("north/inner/tidy"), ["north/inner/ask Any", "north/inner/bring_up Any"]);
    assert_eq!(needs("south/write"), ["start Success"]);
    let ends = |of: &str| ["ask", "bring_up", "tidy"].map(|id| format!("{of}/{id} Success"));
    assert_eq!(needs("read"), [ends("north/inner"), ends("south")].concat());
    assert_eq!(needs("last"), ["report/say Success"]);

    assert_eq!(needs("rescue/first"), ["read Failure"]);
    assert_eq!(needs("rescue/inner/write"), ["rescue/first Success"]);
    let rescue = plan.scopes.iter().find(|scope| scope.id.as_str() == "rescue").unwrap();
    assert_eq!(rescue.needs, [Need { step: "read".to_owned().try_into().unwrap(), on: NeedOn::Failure }]);

    let (tidy, say) = (step("north/inner/tidy"), step("report/say"));
    assert_eq!((tidy.always, tidy.concludes, tidy.on_error), (true, Some(1), OnError::Continue));
    assert_eq!((say.always, say.concludes), (true, None));
    assert_eq!(step("north/inner/bring_up").writes, ["db"]);
    assert_eq!(step("north/inner/bring_up").with["cluster"], "db");
    assert_eq!(step("north/inner/bring_up").place, "runbooks/rebuild.yaml:22");
    let condition = &step("south/bring_up").conditions[0];
    assert_eq!((condition.of.as_str(), condition.scope), ("south", None));
    assert!(plan.steps.iter().all(|step| step.milestone.is_none()), "those of called runbooks mean nothing");
    assert!(plan.roles.contains_key("librarian") && plan.sources.contains_key("runbooks/rebuild.yaml"));

    let scopes: Vec<_> = plan.scopes.iter().map(|scope| (scope.id.as_str(), scope.parent)).collect();
    assert_eq!(
        scopes,
        [
            ("north", None),
            ("north/inner", Some(0)),
            ("south", None),
            ("rescue", None),
            ("rescue/inner", Some(3)),
            ("report", None)
        ]
    );
    let group = |id: &str| plan.groups.iter().find(|group| group.id.as_str() == id).unwrap();
    assert_eq!(group("north").max_parallel, Some(1));
    assert_eq!(group("north").milestone.as_ref().unwrap().name, "north_up");
    assert_eq!(group("north/inner/both").parent, Some(group("north/inner").id.clone()));
    assert_eq!(group("north/inner").parent, Some(group("north").id.clone()));
    assert_eq!(group("north").parent, Some(group("regions").id.clone()));
}

#[test]
fn runbooks_that_call_each_other_are_told_with_the_whole_chain() {
    let (dir, _) = full_project();
    let call = |name: &str, called: &str| {
        let text =
            format!("runbook: {name}\nenvironments: [staging]\nsteps:\n  - {{ id: x, runbook: {called} }}\n");
        std::fs::write(dir.path().join(format!("runbooks/{name}.yaml")), text).unwrap();
    };
    call("one", "two");
    call("two", "three");
    call("three", "two");
    let project = Project::load(dir.path()).unwrap();
    let found = compile_in(&project, "one", "staging", Mode::Recovery).unwrap_err();
    let told: Vec<_> = found.iter().map(|found| (found.code.id, found.message.as_str())).collect();
    let chain = "a runbook cannot call itself: `two` calls `three` calls `two`";
    assert_eq!(told, [("LB0149", chain)]);
    assert_eq!(found.iter().next().unwrap().place.as_ref().unwrap().source.name, "runbooks/three.yaml");

    // A mistake in a runbook that is called stands in the way of the caller, at its own place and once.
    call("three", "ping");
    std::fs::write(dir.path().join("runbooks/ping.yaml"), "runbook: ping\nenvironments: [staging]\nsteps:\n  - { id: say, uses: note, with: { text: '{{ steps.z }}' } }\n").unwrap();
    let project = Project::load(dir.path()).unwrap();
    let found = compile_in(&project, "one", "staging", Mode::Recovery).unwrap_err();
    assert_eq!(
        found.iter().map(|found| found.place.as_ref().unwrap().short()).collect::<Vec<_>>(),
        ["runbooks/ping.yaml:4"]
    );
    assert_eq!(check_all(&project, &registry()).counts(), (1, 0));
}

#[test]
fn budgets_of_called_runbooks_count() {
    let (dir, _) = full_project();
    let text = "runbook: tight\nenvironments: [staging]\nobjective: { rto: 7m }\nsteps:\n  - { id: x, runbook: rebuild, with: { text: a } }\n";
    std::fs::write(dir.path().join("runbooks/tight.yaml"), text).unwrap();
    let project = Project::load(dir.path()).unwrap();
    let found = compile_in(&project, "tight", "staging", Mode::Recovery).unwrap_err();
    let told: Vec<_> =
        found.iter().map(|found| (found.code.id, found.help.as_deref().unwrap_or_default())).collect();
    assert_eq!(told, [("LB0132", "the path with budgets: x/write")]);
}

#[test]
fn inputs_that_name_resources_tell_which_there_are() {
    let (_dir, project) = full_project();
    let compile = |given: Value| {
        let inputs = given.as_object().unwrap().clone();
        let (runbook, environment) = ("flush", "production");
        let request =
            RunRequest { runbook, environment, mode: Mode::Recovery, inputs: &inputs, incident_at: None };
        project.compile(&request, &registry())
    };
    let told = |given: Value| {
        let found = compile(given).unwrap_err();
        let first = found.iter().next().unwrap().clone();
        (first.code.id, first.message, first.help.unwrap_or_default())
    };
    let candidates = "the redis resources of `production`: `cache`";
    let (code, message, help) = told(json!({}));
    assert_eq!((code, message.as_str()), ("LB0142", "the input `server` is not given"));
    assert!(help.contains("-i server=VALUE") && help.contains(candidates), "{help}");
    let (code, message, help) = told(json!({ "server": "db" }));
    assert_eq!((code, help.as_str()), ("LB0143", candidates));
    assert_eq!(message, "the input `server`: `db` is a postgres in `production`, not a redis");
    let (_, message, help) = told(json!({ "server": "nowhere" }));
    assert_eq!(message, "the input `server`: `production` has no resource `nowhere`");
    assert_eq!(help, candidates);
    assert_eq!(told(json!({ "server": "from:cache" })).0, "LB0143", "only a step can name what a step makes");
    assert_eq!(compile(json!({ "server": "cache" })).unwrap().plan.steps[0].writes, ["cache"]);
}

#[test]
fn systems_that_steps_make_have_the_names_of_their_steps_in_the_plan() {
    let (dir, _) = full_project();
    for name in ["made_systems", "made_for_a_call"] {
        std::fs::copy(
            corpus().join(format!("valid/{name}.yaml")),
            dir.path().join(format!("runbooks/{name}.yaml")),
        )
        .unwrap();
    }
    let project = Project::load(dir.path()).unwrap();
    let plan = compile_in(&project, "made-systems", "staging", Mode::Drill).unwrap().plan;
    let step = |plan: &lifeboat_engine::plan::Plan, id: &str| {
        plan.steps.iter().find(|step| step.id.as_str() == id).unwrap().clone()
    };
    assert_eq!(step(&plan, "flush").writes, ["from:cache"]);
    let report = step(&plan, "report");
    assert_eq!(report.reads, ["from:clone", "from:cache"]);
    assert_eq!(report.with["env"]["DATABASE_URL"]["connection"], "from:clone");
    let plan = compile_in(&project, "made-for-a-call", "staging", Mode::Drill).unwrap().plan;
    assert_eq!(step(&plan, "inner/empty").writes, ["from:cache"], "given by the caller");
    assert_eq!(step(&plan, "inner/second").writes, ["from:inner/cache"], "made inside");
    assert_eq!(step(&plan, "inner/second").with["server"], "from:inner/cache");
    // A drill may use what it makes, even where it may touch nothing else.
    assert!(compile_in(&project, "made-systems", "production", Mode::Recovery).is_ok());
    let refused = compile_in(&project, "made-systems", "production", Mode::Drill);
    assert!(refused.is_ok(), "{}", render(&refused.unwrap_err(), Style::Plain));
}

#[test]
fn missing_inputs_are_told_together() {
    let (_dir, project) = full_project();
    let request = RunRequest {
        runbook: "restore",
        environment: "staging",
        mode: Mode::Recovery,
        inputs: &Map::new(),
        incident_at: None,
    };
    let found = project.compile(&request, &registry()).unwrap_err();
    let codes: Vec<_> = found.iter().map(|diagnostic| diagnostic.code.id).collect();
    assert_eq!(codes, ["LB0142", "LB0142"]);
    let found = project.compile(&RunRequest { runbook: "restor", ..request }, &registry()).unwrap_err();
    assert_eq!(found.iter().next().unwrap().help.as_deref(), Some("did you mean `restore`?"));
}

#[test]
fn ten_thousand_steps_compile_quickly() {
    use std::fmt::Write;
    let (dir, _) = full_project();
    let mut text = "runbook: long\nenvironments: [staging]\nsteps:\n".to_owned();
    for at in 0..10_000_usize {
        let read = if at == 0 { "x".to_owned() } else { format!("{{{{ steps.s{}.words }}}}", at - 1) };
        writeln!(text, "  - {{ id: s{at}, uses: note, with: {{ text: \"{read}\" }}, budget: 1s }}").unwrap();
    }
    std::fs::write(dir.path().join("runbooks/long.yaml"), text).unwrap();
    let begun = processor_time();
    let project = Project::load(dir.path()).unwrap();
    let plan = compile_in(&project, "long", "staging", Mode::Recovery).unwrap().plan;
    let path = compile::graph::Graph::of(&plan).critical_path(&[9_999]).unwrap();
    assert_eq!(path.steps.len(), 10_000);
    // Generous, for builds without optimisation; a cost that grows with the square is far beyond it.
    let took = processor_time() - begun;
    assert!(took < 20, "{took} s");
}

/// Returns what this thread has had of the processor, in seconds: other programs do not count.
fn processor_time() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).unwrap().user_time().num_seconds()
}

#[test]
fn an_input_cannot_give_a_read_only_resource_to_a_step_that_writes() {
    let (_dir, project) = full_project();
    let compile = |name: &str| {
        let inputs = json!({ "which": name }).as_object().unwrap().clone();
        let request = RunRequest {
            runbook: "prune",
            environment: "staging",
            mode: Mode::Recovery,
            inputs: &inputs,
            incident_at: None,
        };
        project.compile(&request, &registry())
    };
    assert_eq!(compile("uploads").unwrap().plan.steps[0].writes, ["uploads"]);
    let found = compile("backups").unwrap_err();
    assert_eq!(found.iter().map(|found| found.code.id).collect::<Vec<_>>(), ["LB0126"]);
}
