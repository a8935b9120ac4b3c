//! `lifeboat check` as people and machines call it, with the kinds of step that there really are.

use serde_json::Value;

use crate::project::Project;

fn broken() -> Project {
    let project = Project::with_steps("- { id: one, effekt: read, run: uptime }");
    project.runbook("other", "titel: 100%, of it", "- { id: two, effect: read, run: uptime }");
    project
}

#[test]
fn paths_choose_files_and_nothing_else_passes_for_checked() {
    let project = broken();
    let all = project.run(&["check"]).expect(3);
    assert!(all.stderr.contains("2 errors, 0 warnings"), "{}", all.all());
    for path in ["runbooks/job.yaml", "./runbooks/../runbooks/job.yaml"] {
        let ran = project.run(&["check", path]).expect(3);
        assert!(ran.stdout.contains("job.yaml:6") && !ran.stdout.contains("other.yaml"), "{}", ran.all());
    }
    project.run(&["check", "environments"]).expect(0);
    project.run(&["check", "runbooks"]).expect(3);
    let inner = project.command(&["check", "job.yaml"]).current_dir(project.file("runbooks")).output();
    assert_eq!(inner.expect("the program starts").status.code(), Some(3));
    project.write("notes.yaml", "runbook: x");
    for path in ["runbooks/jop.yaml", "notes.yaml", "/etc", ".."] {
        let ran = project.run(&["check", path]).expect(2);
        assert!(ran.stderr.contains(path), "{}", ran.all());
    }
}

#[test]
fn machines_get_json_by_its_schema_and_annotations() {
    let project = broken();
    let ran = project.run(&["check", "--format", "json"]).expect(3);
    let schema = project.run(&["schema", "check"]).expect(0).json();
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    assert!(validator.is_valid(&ran.json()), "{}", ran.stdout);
    assert_eq!(ran.json()["format"], 1);
    let first: &Value = &ran.json()["problems"][0];
    assert_eq!(
        (&first["file"], &first["line"], &first["column"]),
        (&"runbooks/job.yaml".into(), &6.into(), &16.into())
    );
    assert_eq!(first["fix"]["replacement"], "effect");
    let ran = project.run(&["check", "--format", "github"]).expect(3);
    let expected = "::error file=runbooks/job.yaml,line=6,endLine=6,col=16,endColumn=22,title=LB0104::a step has no key `effekt`%0Ahelp: ";
    assert!(ran.stdout.starts_with(expected), "{}", ran.stdout);
}

#[test]
fn warnings_stand_in_the_way_only_if_they_shall() {
    let project = Project::new();
    project.runbook("job", "milestones: { up: 5m }", "- { id: one, effect: read, run: uptime }");
    let ran = project.run(&["check"]).expect(0);
    assert!(ran.stdout.contains("warning[LB0136]") && ran.stderr.contains("1 warning"), "{}", ran.all());
    let ran = project.run(&["check", "--deny-warnings"]).expect(3);
    assert!(ran.stderr.contains("0 errors, 1 warning"), "{}", ran.all());
}

#[test]
fn explain_finds_the_code_that_was_meant() {
    let project = Project::new();
    let ran = project.run(&["explain", "lb0104"]).expect(0);
    assert!(ran.stdout.starts_with("LB0104: unknown key\n\n"), "{}", ran.all());
    let ran = project.run(&["explain", "LB104"]).expect(2);
    assert!(ran.stderr.contains("lifeboat explain LB0104"), "{}", ran.all());
}

/// One mistake for each family of kinds, with what must be told of it.
const FAMILIES: &[(&str, &str, &str)] = &[
    ("postgres.query", "{ cluster: db, database: shop, sqll: select 1 }", "did you mean `sql`?"),
    ("postgres.restore_base", "{ store: backups, backup: x, cluster: db, existing: remove }", "LB0106"),
    ("postgres.recover", "{ store: backups, cluster: db, target_time: yesterday }", "LB0109"),
    ("redis.verify", "{ server: db }", "here stands a redis"),
    ("files.restore", "{ files: uploads, stoer: backups }", "did you mean `store`?"),
    ("service.stop", "{ service: db }", "here stands a service"),
    (
        "http.smoke",
        "{ target: site, checks: [{ name: a, get: /, expect: status == 200 }] }",
        "[status == 200]",
    ),
    ("http.wait", "{ target: site, ready_timeout: 5 }", "LB0108"),
    ("approval", "{ role: lead }", "needs the parameter `message`"),
    ("notify", "{ channel: site, message: x }", "LB0125"),
    ("assert", "{ that: [] }", "LB0138"),
    ("wait", "{ for: 60 }", "`60` has no unit"),
];

#[test]
fn every_family_of_kinds_tells_what_is_wrong_with_its_parameters() {
    for (kind, with, told) in FAMILIES {
        let project = Project::new();
        project.write(
            "environments/sandbox.yaml",
            "environment: sandbox\nresources:\n  db: { kind: postgres, data_dir: /tmp/db }\n  \
             cache: { kind: redis, url: 'redis://127.0.0.1:1' }\n  backups: { kind: store, url: 'dir:///tmp/b' }\n  \
             uploads: { kind: files, path: /tmp/u }\n  site: { kind: http, url: 'http://127.0.0.1:1' }\n",
        );
        project.runbook(
            "job",
            "roles: { lead: Decides }",
            &format!("- {{ id: one, uses: {kind}, with: {with} }}"),
        );
        let ran = project.run(&["check"]).expect(3);
        assert!(ran.stdout.contains(told), "{kind}: {}", ran.all());
        assert!(ran.stdout.contains("runbooks/job.yaml:6:"), "{kind}: {}", ran.all());
    }
}

/// Whatever an editor offers is typed and described, all the way down.
fn described(schema: &Value, place: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{place}");
    for (name, property) in properties {
        let place = format!("{place}.{name}");
        assert!(property["description"].as_str().is_some_and(|text| text.len() > 3), "{place}: {property}");
        let forms = property["anyOf"].as_array().cloned().unwrap_or_else(|| vec![property.clone()]);
        for form in forms {
            described(&form, &place);
            described(&form["items"], &format!("{place}[]"));
        }
    }
}

#[test]
fn the_parameters_of_every_kind_are_typed_and_described_for_editors() {
    let project = Project::new();
    let schema = project.run(&["schema", "runbook"]).expect(0).json();
    let branches = schema["$defs"]["step"]["allOf"].as_array().expect("branches");
    let offered = schema["$defs"]["step"]["properties"]["uses"]["enum"].as_array().expect("kinds");
    assert!(offered.len() > 20, "{}", offered.len());
    for kind in offered {
        let branch = branches.iter().find(|branch| branch["if"]["properties"]["uses"]["const"] == *kind);
        let with = &branch.unwrap_or_else(|| panic!("{kind} has no branch"))["then"]["properties"]["with"];
        assert!(with["description"].is_string(), "{kind}");
        let name = with["$ref"].as_str().and_then(|it| it.strip_prefix("#/$defs/")).expect("a reference");
        let with = &schema["$defs"][name];
        assert_eq!(with["type"], "object", "{kind}");
        described(with, kind.as_str().unwrap_or_default());
    }
}
