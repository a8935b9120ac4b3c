//! What no plan may reach: protected systems from drills and copies, and machines that are not this one.

use super::*;

#[test]
fn drills_and_copies_keep_away_from_protected_systems() {
    let (dir, project) = full_project();
    let refused = compile_in(&project, "restore", "production", Mode::Drill).unwrap_err();
    assert!(refused.iter().any(|diagnostic| diagnostic.code.id == "LB0140"));
    assert!(compile_in(&project, "restore", "production", Mode::Recovery).is_ok());

    std::fs::copy(corpus().join("environments/fence.yaml"), dir.path().join("environments/copy.yaml"))
        .unwrap();
    std::fs::write(
        dir.path().join("runbooks/wipe.yaml"),
        "runbook: wipe\nenvironments: [copy]\nsteps:\n  - { id: a, uses: postgres.promote, with: { cluster: db } }\n  \
         - { id: b, uses: cache.flush, with: { server: cache } }\n  - { id: c, uses: store.prune, with: { store: uploads } }\n",
    )
    .unwrap();
    let project = Project::load(dir.path()).unwrap();
    let found = compile_in(&project, "wipe", "copy", Mode::Recovery).unwrap_err();
    assert_eq!(found.iter().filter(|diagnostic| diagnostic.code.id == "LB0141").count(), 3);
    assert_eq!(check_all(&project, &registry()).counts(), (3, 0));
    snapshot("fence", &render(&found, Style::Plain));
}

#[test]
fn a_link_or_a_script_does_not_lead_around_the_fence() {
    let (dir, _) = full_project();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("real")).unwrap();
    std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
    write(
        "environments/main.yaml",
        "environment: main\nprotected: true\nresources:\n  db: { kind: postgres, data_dir: ../real, host: localhost, port: 7001 }\n",
    );
    write(
        "environments/copy.yaml",
        "environment: copy\nresources:\n  linked: { kind: postgres, data_dir: ../link, port: 7002 }\n  \
         spelled: { kind: postgres, host: \"::1\", port: 7001 }\n  other: { kind: postgres, host: \"::1\", port: 7003 }\n",
    );
    write(
        "runbooks/wipe.yaml",
        "runbook: wipe\nenvironments: [copy]\nsteps:\n  - { id: a, uses: postgres.promote, with: { cluster: linked } }\n  \
         - { id: b, effect: idempotent, env: { URL: { connection: spelled }, B: { connection: other } }, run: migrate }\n  \
         - { id: c, effect: read, env: { URL: { connection: spelled } }, run: look }\n",
    );
    let project = Project::load(dir.path()).unwrap();
    for found in
        [compile_in(&project, "wipe", "copy", Mode::Recovery).unwrap_err(), check_all(&project, &registry())]
    {
        let told: Vec<_> = found.iter().map(|found| (found.code.id, found.message.as_str())).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|(code, _)| *code == "LB0141"), "{told:?}");
        assert!(told[0].1.contains("`linked`") && told[1].1.contains("`spelled`"), "{told:?}");
    }
}

#[test]
fn only_a_step_on_another_machine_is_refused_and_only_when_it_would_run() {
    let (dir, _) = full_project();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "environments/far.yaml",
        "environment: far\nresources:\n  here: { kind: host, local: true }\n  there: { kind: host, address: web2 }\n",
    );
    let steps = |host: &str| {
        format!(
            "runbook: go\nenvironments: [far]\ninputs: {{ where: {{ type: resource, kind: host, default: here }} }}\n\
             steps:\n  - {{ id: a, host: {host}, effect: read, run: uptime }}\n"
        )
    };
    let plan = |host: &str, given: Value| {
        write("runbooks/go.yaml", &steps(host));
        let project = Project::load(dir.path()).unwrap();
        assert_eq!(check_all(&project, &registry()).counts(), (0, 0), "check accepts every host");
        let inputs = given.as_object().unwrap().clone();
        let (runbook, environment) = ("go", "far");
        let request =
            RunRequest { runbook, environment, mode: Mode::Recovery, inputs: &inputs, incident_at: None };
        project.compile(&request, &registry())
    };
    assert!(
        plan("here", json!({})).is_ok(),
        "an environment may name machines that this runbook does not use"
    );
    let refused = plan("there", json!({})).unwrap_err();
    let first = refused.iter().next().unwrap();
    assert_eq!((refused.counts(), first.code.id), ((1, 0), "LB0209"));
    assert_eq!(first.place.as_ref().unwrap().short(), "runbooks/go.yaml:5");
    assert!(plan("'{{ inputs.where }}'", json!({})).is_ok());
    let refused = plan("'{{ inputs.where }}'", json!({ "where": "there" })).unwrap_err();
    assert_eq!(refused.iter().next().unwrap().code.id, "LB0209");
}
