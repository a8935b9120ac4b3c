use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, NAMES};
use super::codes;
use super::request::{self, Written};
use super::session::{NoAnswer, Session, target};

/// Waits until a web service answers as expected.
#[derive(Debug)]
pub(super) struct Wait;

/// Makes one request.
#[derive(Debug)]
pub(super) struct Request;

#[derive(Deserialize)]
struct WaitParams {
    target: String,
    path: String,
    expect: Vec<String>,
    ready_timeout: Span,
    request_timeout: Span,
    address: Option<SocketAddr>,
}

#[derive(Deserialize)]
struct RequestParams {
    target: String,
    request_timeout: Span,
    address: Option<SocketAddr>,
    #[serde(flatten)]
    request: Written,
}

fn common(spec: KindSpec) -> KindSpec {
    spec.param(Field::required("target", Type::reads(ResourceKind::Http), "The web service."))
        .param(Field::defaulted("request_timeout", Type::Duration, "10s", "How long one answer may take."))
        .param(Field::optional(
            "address",
            Type::String,
            "IP:PORT to connect to, whatever the name resolves to.",
        ))
}

#[async_trait]
impl StepKind for Wait {
    fn spec(&self) -> KindSpec {
        common(KindSpec::new("http.wait", "Waits until a web service answers as expected.", Effect::Read))
            .doc("Asks again until all conditions hold or `ready_timeout` is over. Any other answer is waited out too.")
            .param(Field::defaulted("path", Type::String, "/", "The path to ask for."))
            .param(Field::defaulted("expect", Type::conditions(&NAMES), json!(["status == 200"]), "Conditions over the answer."))
            .param(Field::defaulted("ready_timeout", Type::Duration, "60s", "How long to wait."))
            .output("waited_ms", Type::Integer, "How long it took.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        const BETWEEN: Duration = Duration::from_millis(250);
        let params: WaitParams = ctx.params()?;
        let page = Written::get(&params.path, params.expect.clone());
        let begun = Instant::now();
        loop {
            let session =
                Session::new(target(ctx, &params.target)?, params.request_timeout.0, params.address)?;
            let ready = page.ready(ctx, &Map::new())?;
            let answer = tokio::select! {
                () = ctx.cancelled() => return Err(never(&params, "the step had to end")),
                answer = session.send(ready, true) => answer,
            };
            let (checks, last) = match answer {
                Ok(answer) => {
                    let checks = answer.checks(&page.name, &page.expect, &Map::new());
                    if checks.iter().all(|check| check.passed) {
                        let waited = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                        let outputs = Map::from_iter([("waited_ms".to_owned(), waited.into())]);
                        return Ok(Done { outputs, checks, ..Done::default() });
                    }
                    (checks, answer.fact())
                }
                Err(NoAnswer::NotUp(why)) => (Vec::new(), why),
                Err(NoAnswer::Failed(error)) => return Err(error),
            };
            if begun.elapsed() >= params.ready_timeout.0 {
                return Err(never(&params, &last).checks(checks));
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }
}

fn never(params: &WaitParams, last: &str) -> StepError {
    let message = format!(
        "the web service `{}` did not answer as expected at {} within {}: {last}",
        params.target, params.path, params.ready_timeout
    );
    StepError::transient(codes::LB1602, message).help("see whether its process runs, and what its log says")
}

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

const REQUEST_DOC: &str = "\
Give exactly one of `get`, `post`, `put`, `patch` and `delete`. Conditions see `status`, `json`, `body`, `headers` (names in
lower case), `elapsed_ms` and `captured`; without any, `status < 400` is expected.

Only the runbook can say what making the request twice means: give the step an `effect`, mostly `read` for a `get`.";

#[async_trait]
impl StepKind for Request {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("http.request", "Makes one request.", Effect::Once).doc(REQUEST_DOC);
        let mut spec = common(spec)
            .output("status", Type::Integer, "The status of the answer.")
            .output("json", Type::Any, "The body as JSON; null if it is none.")
            .output("body", Type::String, "The first 64 KiB of the body.")
            .output("captured", Type::map(Type::Any), "What was captured.");
        spec.params.extend(request::fields());
        KindSpec { effect: None, ..spec }
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let written = serde_json::from_value::<Written>(Value::Object(with.clone())).ok();
        let problem = |message| ParamProblem { param: "target".into(), message, help: None };
        // A path that holds a template is absent, and is judged when the request is made.
        let is_literal = METHODS.iter().filter(|method| with.contains_key(**method)).count() == 1;
        written
            .filter(|_| is_literal)
            .and_then(|written| written.problem())
            .map(problem)
            .into_iter()
            .collect()
    }

    fn check_given(&self, given: &[&str]) -> Vec<ParamProblem> {
        let count = given.iter().filter(|name| METHODS.contains(name)).count();
        let problem = || ParamProblem {
            param: "target".into(),
            message: format!("the request needs exactly one of {}, and has {count}", METHODS.join(", ")),
            help: Some("write the method and the path, as in `get: /health`".into()),
        };
        (count != 1).then(problem).into_iter().collect()
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: RequestParams = ctx.params()?;
        let mut request = params.request;
        request.name = request.describe();
        let session = Session::new(target(ctx, &params.target)?, params.request_timeout.0, params.address)?;
        let ready = request.ready(ctx, &Map::new())?;
        let answer = tokio::select! {
            () = ctx.cancelled() => return Err(unknown(&request.name, "the step had to end")),
            answer = session.send(ready, request.follow.unwrap_or(true)) => answer,
        };
        match answer {
            Ok(answer) => judge(&request, &answer),
            // It may have arrived all the same.
            Err(NoAnswer::NotUp(why)) => Err(unknown(&request.name, &why)),
            Err(NoAnswer::Failed(error)) => Err(error),
        }
    }
}

fn judge(request: &Written, answer: &Answer) -> Result<Done, StepError> {
    const BODY: usize = 64 * 1024;
    let by_default = ["status < 400".to_owned()];
    let expect = if request.expect.is_empty() { &by_default } else { request.expect.as_slice() };
    let checks = answer.checks(&request.name, expect, &Map::new());
    if let Some(first) = checks.iter().find(|check| !check.passed) {
        let message =
            format!("{} is wrong: {} does not hold ({})", request.name, first.expected, first.actual);
        return Err(StepError::permanent(codes::LB1601, message).checks(checks));
    }
    let mut captured = Map::new();
    for (name, how) in &request.capture {
        let value = answer.capture(how, &captured).map_err(|problem| {
            StepError::permanent(codes::LB1601, format!("`{name}` cannot be captured: {problem}"))
        })?;
        captured.insert(name.clone(), value);
    }
    let names = answer.names(&captured);
    let body: String = answer.body.chars().take(BODY).collect();
    let Value::Object(outputs) =
        json!({ "status": names["status"], "json": names["json"], "body": body, "captured": captured })
    else {
        unreachable!("an object was written")
    };
    Ok(Done { outputs, checks, ..Done::default() })
}

fn unknown(name: &str, why: &str) -> StepError {
    StepError::uncertain(codes::LB1602, format!("{name} was sent, but no answer came: {why}"))
        .help("find out whether the service has done what was asked before it is asked again")
}
