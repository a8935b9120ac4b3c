//! Questions to people, and messages.

pub mod support;

use lifeboat_engine::model::event::{Answer, Person};
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::secret::SecretRef;
use serde_json::{Value, json};
use support::rig::Rig;
use support::web::{Web, closed_port, reply};

fn answering(choice: &str, comment: Option<&str>) -> Rig {
    let rig = Rig::drill();
    let by = Person { name: "tester".into(), uid: 1000 };
    let answer = Answer { comment: comment.map(Into::into), ..Answer::new(choice, by) };
    rig.reported().answers.push_back(answer);
    rig
}

#[tokio::test]
async fn an_approval_names_who_gave_it() {
    let rig = answering("approve", Some("go"));
    let with = json!({ "role": "database_lead", "message": "Promote?" });
    let done = rig.run("approval", with).await.unwrap();
    assert_eq!(Value::Object(done.outputs), json!({ "by": "tester", "comment": "go", "automatic": false }));
    let question = rig.reported().questions[0].clone();
    assert_eq!((question.role.as_deref(), question.message.as_str()), (Some("database_lead"), "Promote?"));
    assert_eq!(question.choices, ["approve", "reject"]);
}

#[tokio::test]
async fn a_rejection_is_permanent_and_says_why() {
    let error = answering("reject", Some("wrong target"))
        .run("approval", json!({ "message": "Go?" }))
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Permanent, "LB1701"));
    assert_eq!(error.message, "tester refused approval: wrong target");
}

#[tokio::test]
async fn an_automatic_answer_is_no_evidence() {
    let rig = Rig::drill();
    let done = rig.run("manual", json!({ "text": "Look", "checklist": ["seen"] })).await.unwrap();
    assert_eq!(done.outputs["automatic"], json!(true));
    assert!(done.checks.is_empty() && done.warnings[0].contains("automatically"));
}

#[tokio::test]
async fn manual_work_has_a_checklist() {
    let rig = answering("done", None);
    let with = json!({ "role": "ops", "text": "Compare", "checklist": ["totals agree", "no mail"] });
    let done = rig.run("manual", with).await.unwrap();
    let names: Vec<_> =
        done.checks.iter().map(|check| (check.name.as_str(), check.actual.as_str())).collect();
    assert_eq!(names, [("totals agree", "confirmed by tester"), ("no mail", "confirmed by tester")]);
    let question = rig.reported().questions[0].clone();
    assert_eq!(question.role.as_deref(), Some("ops"));
    assert_eq!(question.message, "Compare\n  1. totals agree\n  2. no mail");
    assert_eq!(question.points, ["totals agree", "no mail"]);

    let error = answering("failed", None).run("manual", json!({ "text": "Do" })).await.unwrap_err();
    assert_eq!(
        (error.code.id, error.message.as_str()),
        ("LB1702", "tester could not do it without a comment")
    );
}

#[test]
fn empty_instructions_are_found_before_a_run() {
    let kind = lifeboat_steps::registry().kind("manual").unwrap();
    let problems = |text: &str| kind.check(json!({ "text": text }).as_object().unwrap()).len();
    assert_eq!((problems("Do it"), problems(" ")), (0, 1));
}

fn channel(kind: &str, url: &str) -> Rig {
    let address = SecretRef::Env("HOOK".into());
    Rig::drill()
        .resource_from("ops", json!({ "kind": kind, "webhook": { "env": "HOOK" } }))
        .secret(address, url)
}

#[tokio::test]
async fn messages_take_the_form_of_their_channel() {
    let web = Web::start(|_| reply(200, "ok")).await;
    let with =
        json!({ "channel": "ops", "message": "Restored <!here>", "fields": { "Lost": "12 s", "Rows": 7 } });
    let done = channel("slack", &web.url("/hook/secret")).run("notify", with.clone()).await.unwrap();
    assert_eq!(done.outputs["status"], json!(200));
    let rig = channel("webhook", &web.url("/generic"));
    rig.run("notify", with).await.unwrap();
    let requests = web.requests();
    let slack: Value = serde_json::from_str(&requests[0].body).unwrap();
    assert_eq!(slack["text"], "[drill] Restored &lt;!here&gt;");
    let fields: Vec<_> =
        slack["blocks"][1]["fields"].as_array().unwrap().iter().map(|field| field["text"].clone()).collect();
    assert_eq!(fields, ["*Lost*\n12 s", "*Rows*\n7"]);
    assert_eq!(requests[0].path, "/hook/secret");
    let generic: Value = serde_json::from_str(&requests[1].body).unwrap();
    assert_eq!(
        (&generic["message"], &generic["mode"]),
        (&json!("[drill] Restored <!here>"), &json!("drill"))
    );
    assert_eq!(generic["fields"], json!({ "Lost": "12 s", "Rows": 7 }));
    assert_eq!(generic["run"], json!(rig.run_id));
    assert_eq!(requests[1].header("idempotency-key"), Some(format!("{}/notify", rig.run_id).as_str()));
}

#[tokio::test]
async fn an_undelivered_message_does_not_show_its_address() {
    let with = json!({ "channel": "ops", "message": "x" });
    let gone = format!("http://127.0.0.1:{}/hook/secret-part", closed_port());
    let error = channel("slack", &gone).run("notify", with.clone()).await.unwrap_err();
    assert_eq!((error.kind, error.code.id), (FailureKind::Transient, "LB1704"));
    assert!(!format!("{error:?}").contains("secret-part"), "{error:?}");
    let web = Web::start(|request| reply(if request.path == "/revoked" { 404 } else { 503 }, "")).await;
    let revoked = channel("slack", &web.url("/revoked")).run("notify", with.clone()).await.unwrap_err();
    assert_eq!(revoked.kind, FailureKind::Permanent);
    let busy = channel("slack", &web.url("/busy")).run("notify", with).await.unwrap_err();
    assert_eq!(busy.kind, FailureKind::Transient);
}

#[tokio::test]
async fn only_messages_go_on_after_a_failure() {
    let registry = lifeboat_steps::registry();
    assert!(registry.spec("notify").unwrap().continues_on_error);
    assert!(registry.spec("approval").unwrap().waits_for_people);
    assert_eq!(registry.by_body_key("manual").unwrap().1, "text");
}
