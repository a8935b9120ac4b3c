//! A run without steps, for tests of what is beneath the steps.

use lifeboat_engine::model::event::{EventKind, Person};
use lifeboat_engine::plan::Plan;
use serde_json::json;

pub(crate) fn plan() -> Plan {
    serde_json::from_value(json!({
        "format": 1, "project": "members", "project_dir": "/srv/members", "runbook": "restore",
        "title": "Restore", "owner": null, "environment": "staging", "protected": false, "mode": "drill",
        "commit": null, "objective": { "rto": null, "rpo": null }, "milestones": {}, "roles": {},
        "inputs": {}, "vars": {}, "resources": {}, "secrets": {}, "auto_approvals": true,
        "steps": [], "groups": [], "sources": {}
    }))
    .unwrap()
}

pub(crate) fn declared() -> EventKind {
    EventKind::RunDeclared {
        plan_digest: plan().digest(),
        incident_at_ms: 0,
        by: Person { name: "ada".into(), uid: 1000 },
        inputs: serde_json::Map::new(),
        engine: "0.1.0".into(),
    }
}
