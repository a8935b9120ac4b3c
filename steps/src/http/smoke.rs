use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::expr;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::codes;
use super::request::{self, Written};
use super::session::{NoAnswer, Session, target};

const BETWEEN: Duration = Duration::from_millis(250);

/// Runs a flow of requests against a web service and judges every answer.
#[derive(Debug)]
pub(super) struct Smoke;

#[derive(Deserialize)]
struct Params {
    target: String,
    checks: Vec<Written>,
    identity: Option<Identity>,
    passes: u32,
    ready_timeout: Span,
    request_timeout: Span,
    address: Option<SocketAddr>,
}

/// How the instance is told from any other.
#[derive(Clone, Debug, Deserialize)]
struct Identity {
    /// A header of every answer.
    header: Option<String>,
    /// A page that is asked first.
    path: Option<String>,
    /// What of that page, as an expression; the whole body without blanks at its ends if absent.
    value: Option<String>,
    equals: Value,
}

/// Why a pass did not succeed.
enum Broken {
    NotUp(String),
    Failed(Box<StepError>),
}

const DOC: &str = "\
The checks are requests, made in order as one visitor: cookies are kept, and values captured from an answer are used in
later checks as `${name}` in the path, headers, form, JSON or body. A value `{ secret: NAME }` in headers, form or JSON
stands for a secret of the environment. Conditions see `status`, `json`, `body`, `headers` (names in lower case),
`elapsed_ms` and `captured`; a check without any expects `status < 400`.

```yaml
checks:
  - name: login
    post: /login
    form: { user: demo, password: { secret: demo_password } }
    capture: { token: json.token }
    expect: [status == 200]
  - name: search
    get: \"/members?q=ann\"
    headers: { authorization: \"Bearer ${token}\" }
    expect: [json.members | length > 0, elapsed_ms < 500]
```

What is not up yet (nothing listens, 502, 503) is waited for until `ready_timeout`, and the flow begins again; a wrong
answer fails at once. With `passes`, the whole flow must succeed that often in a row, so it must be repeatable.
`identity` proves that it is the restored instance that answers: a header that every answer carries, or a page asked
first. Redirects are followed on the same host only; one that leads elsewhere is a wrong answer.";

#[async_trait]
impl StepKind for Smoke {
    fn spec(&self) -> KindSpec {
        let mut check = vec![Field::required("name", Type::String, "What is checked.")];
        check.extend(request::fields());
        let identity = vec![
            Field::optional("header", Type::String, "A header of every answer."),
            Field::optional("path", Type::String, "A page that is asked first."),
            Field::optional("value", Type::String, "An expression over that page; its body if absent."),
            Field::required("equals", Type::Any, "What it must be."),
        ];
        KindSpec::new("http.smoke", "Runs a flow of requests and judges every answer.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("target", Type::reads(ResourceKind::Http), "The web service."))
            .param(Field::required("checks", Type::list(Type::Object(check)), "The requests, in order."))
            .param(Field::optional("identity", Type::Object(identity), "Proves which instance answers."))
            .param(Field::defaulted("passes", Type::Integer, 1, "How often in a row the flow must succeed."))
            .param(Field::defaulted(
                "ready_timeout",
                Type::Duration,
                "60s",
                "How long it may take to come up.",
            ))
            .param(Field::defaulted(
                "request_timeout",
                Type::Duration,
                "10s",
                "How long one answer may take.",
            ))
            .param(Field::optional(
                "address",
                Type::String,
                "IP:PORT to connect to, whatever the name resolves to.",
            ))
            .output("passes", Type::Integer, "How often in a row it succeeded.")
            .output("checks", Type::Integer, "How many conditions held in the last pass.")
            .output("elapsed_ms", Type::Integer, "How long the last pass took.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let problem =
            |param: &str, message: String| ParamProblem { param: param.into(), message, help: None };
        let mut problems = Vec::new();
        if let Some(checks) = with.get("checks").and_then(Value::as_array) {
            if checks.is_empty() {
                problems.push(problem("checks", "nothing is checked".into()));
            }
            // One that does not parse has the wrong types, which is reported by the types.
            let written =
                checks.iter().filter_map(|check| serde_json::from_value::<Written>(check.clone()).ok());
            problems.extend(
                written.filter_map(|check| check.problem()).map(|message| problem("checks", message)),
            );
        }
        if let Some(identity) = with.get("identity").and_then(Value::as_object)
            && identity.contains_key("header") == identity.contains_key("path")
        {
            problems.push(problem("identity", "it needs either `header` or `path`".into()));
        }
        if with.get("passes").and_then(Value::as_i64).is_some_and(|passes| passes < 1) {
            problems.push(problem("passes", "at least one pass is needed".into()));
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let url = &target(ctx, &params.target)?.url;
        let actions =
            params.checks.iter().map(|check| format!("{}: {} at {url}", check.name, check.describe()));
        Ok(Preview { actions: actions.collect(), destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        if params.checks.is_empty() || params.passes == 0 {
            return Err(StepError::permanent(codes::LB1603, "nothing is checked"));
        }
        let deadline = Instant::now() + params.ready_timeout.0;
        let mut in_a_row = 0;
        loop {
            let mut pass = Pass::default();
            let begun = Instant::now();
            let broken = tokio::select! {
                () = ctx.cancelled() => return Err(not_up(&params, "the step had to end")),
                result = pass.run(ctx, &params) => result.err(),
            };
            match broken {
                None => in_a_row += 1,
                Some(Broken::Failed(error)) => return Err(error.checks(pass.checks)),
                Some(Broken::NotUp(last)) => {
                    in_a_row = 0;
                    report(ctx, (0, params.passes), &format!("not up yet: {last}"));
                    if Instant::now() >= deadline {
                        return Err(not_up(&params, &last).checks(pass.checks));
                    }
                }
            }
            if in_a_row >= params.passes {
                return Ok(pass.done(in_a_row, begun.elapsed()));
            }
            report(ctx, (in_a_row, params.passes), "passes");
            tokio::time::sleep(BETWEEN).await;
        }
    }
}

/// One run through all checks, with what was seen.
#[derive(Default)]
struct Pass {
    checks: Vec<Check>,
    facts: BTreeMap<String, String>,
    captured: Map<String, Value>,
}

impl Pass {
    async fn run(&mut self, ctx: &StepContext, params: &Params) -> Result<(), Broken> {
        let http = target(ctx, &params.target).map_err(failed)?;
        let session = Session::new(http, params.request_timeout.0, params.address).map_err(failed)?;
        if let Some(identity) = &params.identity
            && let Some(path) = &identity.path
        {
            let page = Written::get(path, Vec::new());
            let answer = self.send(ctx, &session, &page).await?;
            if answer.is_not_up() {
                return Err(Broken::NotUp(format!("status {}", answer.status)));
            }
            self.identify(identity, &answer)?;
        }
        for check in &params.checks {
            self.check(ctx, &session, (check, params.identity.as_ref())).await?;
        }
        Ok(())
    }

    async fn send(&self, ctx: &StepContext, session: &Session, check: &Written) -> Result<Answer, Broken> {
        let ready = check.ready(ctx, &self.captured).map_err(failed)?;
        session.send(ready, check.follow.unwrap_or(true)).await.map_err(|error| match error {
            NoAnswer::NotUp(why) => Broken::NotUp(why),
            NoAnswer::Failed(error) => failed(error),
        })
    }

    async fn check(
        &mut self,
        ctx: &StepContext,
        session: &Session,
        (check, identity): (&Written, Option<&Identity>),
    ) -> Result<(), Broken> {
        let answer = self.send(ctx, session, check).await?;
        let by_default = ["status < 400".to_owned()];
        let expect = if check.expect.is_empty() { &by_default } else { check.expect.as_slice() };
        let found = answer.checks(&check.name, expect, &self.captured);
        let first = found.iter().find(|check| !check.passed).cloned();
        self.facts.insert(check.name.clone(), answer.fact());
        if first.is_some() && answer.is_not_up() {
            return Err(Broken::NotUp(format!("`{}` gave status {}", check.name, answer.status)));
        }
        self.checks.extend(found);
        if let Some(first) = first {
            return Err(wrong(&check.name, &first, &answer));
        }
        if let Some(identity) = identity.filter(|identity| identity.header.is_some()) {
            self.identify(identity, &answer)?;
        }
        for (name, how) in &check.capture {
            let value = answer.capture(how, &self.captured).map_err(|problem| {
                let message =
                    format!("`{name}` cannot be captured from the answer to `{}`: {problem}", check.name);
                failed(StepError::permanent(codes::LB1601, message))
            })?;
            self.captured.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Compares the identity marker of an answer.
    fn identify(&mut self, identity: &Identity, answer: &Answer) -> Result<(), Broken> {
        let found = match (&identity.header, &identity.value) {
            (Some(header), _) => answer.headers.get(&header.to_lowercase()).cloned().unwrap_or(Value::Null),
            (None, Some(value)) => {
                expr::evaluate(value, &answer.names(&self.captured)).unwrap_or(Value::Null)
            }
            (None, None) => answer.body.trim().into(),
        };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        let passed = text(&found) == text(&identity.equals);
        let check =
            Check { name: "identity".into(), expected: text(&identity.equals), actual: text(&found), passed };
        let message =
            format!("another instance answers: its marker is `{}`, not `{}`", check.actual, check.expected);
        self.checks.retain(|known| known.name != "identity");
        self.checks.push(check);
        if passed {
            return Ok(());
        }
        Err(failed(
            StepError::permanent(codes::LB1604, message)
                .help("point the resource at the restored instance, or pin it with `address`"),
        ))
    }

    fn done(self, passes: u32, elapsed: Duration) -> Done {
        let Value::Object(outputs) = json!({
            "passes": passes,
            "checks": self.checks.len(),
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        }) else {
            unreachable!("an object was written")
        };
        Done { outputs, checks: self.checks, facts: self.facts, ..Done::default() }
    }
}

fn failed(error: StepError) -> Broken {
    Broken::Failed(Box::new(error))
}

fn wrong(name: &str, first: &Check, answer: &Answer) -> Broken {
    const SHOWN: usize = 300;
    let message = format!("`{name}` is wrong: {} does not hold ({})", first.expected, first.actual);
    let mut error = StepError::permanent(codes::LB1601, message)
        .help("look at the log of the service for this request; `lifeboat retry` runs all checks again");
    let beginning: String = answer.body.chars().take(SHOWN).collect();
    error.causes = vec![answer.fact(), format!("its body begins: {beginning}")];
    failed(error)
}

fn not_up(params: &Params, last: &str) -> StepError {
    let message =
        format!("the web service `{}` was not up within {}: {last}", params.target, params.ready_timeout);
    StepError::transient(codes::LB1602, message).help("see whether its process runs, and what its log says")
}

fn report(ctx: &StepContext, (done, total): (u32, u32), note: &str) {
    let (done, total) = (done.into(), Some(total.into()));
    ctx.progress(Progress { done, total, unit: Unit::Items, note: note.to_owned() });
}
