use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Stream, Unit};
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Registry, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Span, Type};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::codes;
use super::look::{How, Look};
use super::tally::{Failure, Schedule, Tally, Tolerance};
use crate::logs::{Mark, Watch};

/// Looks at systems again and again for a while.
pub(super) struct Observe {
    tools: Vec<Tool>,
}

/// A kind that it can look with, under a short name.
struct Tool {
    key: &'static str,
    kind: Arc<dyn StepKind>,
    fields: Vec<Field>,
}

/// The short names, the kinds, and the parameters that a look does not have.
const TOOLS: [(&str, &str, &[&str]); 7] = [
    ("http", "http.request", &["post", "put", "patch", "delete", "json", "form", "body"]),
    ("logs", "logs.check", &["since", "mark"]),
    ("service", "service.status", &[]),
    ("postgres", "postgres.query", &[]),
    ("mariadb", "mariadb.query", &[]),
    ("redis", "redis.query", &[]),
    ("run", "run", &["probe"]),
];
const LOGS: &str = "logs";
const SERVICE: &str = "service";
/// What an attempt records of what it has seen.
const SEEN: &str = "observed";
/// How often that is recorded at most, failures aside.
const RECORD: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(100);
const MOST_LOOKS: u64 = 100_000;

const DOC: &str = "\
Each of `checks` has a `name` and one thing that is looked at, with the parameters of the kind that does it: `http`
(`http.request`, only `get`), `logs` (`logs.check` of what came in since the watching began: `deny` counts in each look,
`require` must be there when the watching ends), `service`
(`service.status`: runs and is ready), `postgres`, `mariadb` and `redis` (their `query`), `run` (a script that only looks and
exits with 0).

All of them are looked at together, at once, after every `every`, and at the end of `for`. A look fails if one of them fails
or takes longer than `limit`. Without `tolerate` none may fail; what is required of a log and lacks at the end is never
tolerated. The step fails as soon as more have failed than it allows,
and does not wait for the end. Every look is a line of the step's output; the report has how many failed of each.

Time counts while it is watched: after a crash the next attempt goes on with what is left, counts what was seen before, and
says how often it was interrupted. After a failure it begins anew.

```yaml
- id: watch
  uses: observe
  with:
    every: 10s
    for: 15m
    tolerate: { failures: 2, in_a_row: 1 }
    checks:
      - { name: health, http: { target: site, get: /health, expect: [status == 200, elapsed_ms < 500] } }
      - { name: errors, logs: { service: app, deny: [{ pattern: ERROR, max: 5 }] } }
```";

#[derive(Deserialize)]
struct Params {
    every: Span,
    #[serde(rename = "for")]
    length: Span,
    limit: Option<Span>,
    #[serde(default)]
    tolerate: Tolerance,
    checks: Vec<Map<String, Value>>,
}

/// What was seen, and where logs ended when the watching began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Seen {
    tally: Tally,
    marks: Map<String, Value>,
}

impl Observe {
    /// Takes what it looks with out of a registry.
    pub(super) fn with(registry: &Registry) -> Self {
        let tools = TOOLS.iter().filter_map(|(key, name, without)| {
            let (kind, spec) = (registry.kind(name)?, registry.spec(name)?);
            let fields = spec.params.iter().filter(|field| !without.contains(&field.name.as_str()));
            Some(Tool { key, kind, fields: fields.cloned().collect() })
        });
        Self { tools: tools.collect() }
    }

    /// Returns the one tool that a check names.
    fn tool(&self, check: &Map<String, Value>) -> Result<&Tool, String> {
        let given: Vec<&Tool> = self.tools.iter().filter(|tool| check.contains_key(tool.key)).collect();
        match given.as_slice() {
            [tool] => Ok(tool),
            _ => {
                let keys: Vec<_> = self.tools.iter().map(|tool| format!("`{}`", tool.key)).collect();
                let name = name_of(check);
                Err(format!("the check `{name}` needs exactly one of {}", keys.join(", ")))
            }
        }
    }

    fn problems_of(&self, check: &Map<String, Value>) -> Vec<ParamProblem> {
        let tool = match self.tool(check) {
            Ok(tool) => tool,
            Err(message) => return vec![problem("checks", message)],
        };
        let Some(with) = check.get(tool.key).and_then(Value::as_object) else { return Vec::new() };
        let found = tool.kind.check(with);
        let name = name_of(check);
        let of = |it: ParamProblem| ParamProblem {
            param: "checks".into(),
            message: format!("the check `{name}`: `{}`: {}", it.param, it.message),
            help: it.help,
        };
        let mut problems: Vec<ParamProblem> = found.into_iter().map(of).collect();
        if tool.key == "http" && !with.contains_key("get") {
            problems.push(problem("checks", format!("the check `{name}` needs a path to `get`")));
        }
        let is_empty = |key: &str| with.get(key).and_then(Value::as_array).is_none_or(Vec::is_empty);
        if tool.key == LOGS && is_empty("deny") && is_empty("require") {
            let message = format!("the check `{name}` needs something to `deny` or to `require`");
            problems.push(problem("checks", message));
        }
        problems.dedup();
        problems
    }

    /// Prepares the looks; logs begin where they ended when the watching began.
    async fn looks(
        &self,
        ctx: &StepContext,
        params: &Params,
        marks: &mut Map<String, Value>,
    ) -> Result<Vec<Look>, StepError> {
        let mut looks = Vec::new();
        for check in &params.checks {
            let tool = self.tool(check).map_err(unusable)?;
            let name = name_of(check).to_owned();
            let with = check.get(tool.key).and_then(Value::as_object).cloned().unwrap_or_default();
            let how = match tool.key {
                LOGS => How::Log(Box::new(log(ctx, (&name, &with), marks).await?)),
                SERVICE => How::Service(Arc::clone(&tool.kind)),
                _ => How::Kind(Arc::clone(&tool.kind)),
            };
            looks.push(Look { name, how, with });
        }
        Ok(looks)
    }
}

/// Opens a log where it ended when the watching began.
async fn log(
    ctx: &StepContext,
    (name, with): (&str, &Map<String, Value>),
    marks: &mut Map<String, Value>,
) -> Result<Watch, StepError> {
    let part = ctx.look(Value::Object(with.clone()), ctx.link());
    let known = marks.get(name).and_then(|mark| serde_json::from_value::<Mark>(mark.clone()).ok());
    let mark = match known {
        Some(mark) => mark,
        None => Watch::mark(&part).await?,
    };
    marks.insert(name.to_owned(), serde_json::to_value(&mark).unwrap_or_default());
    Watch::behind(&part, mark)
}

fn name_of(check: &Map<String, Value>) -> &str {
    check.get("name").and_then(Value::as_str).unwrap_or("?")
}

fn problem(param: &str, message: String) -> ParamProblem {
    ParamProblem { param: param.into(), message, help: None }
}

fn unusable(message: String) -> StepError {
    StepError::permanent(codes::LB0392, message).help("compare it with `lifeboat steps observe`")
}

impl Params {
    fn schedule(&self) -> Schedule {
        Schedule { every: self.every, length: self.length }
    }

    fn limit(&self) -> Duration {
        self.limit.unwrap_or(self.every).0
    }
}

/// Says what is wrong with how often and how long is looked.
fn times(every: Span, length: Span) -> Option<ParamProblem> {
    let schedule = Schedule { every, length };
    if every.0 < SHORTEST {
        return Some(problem("every", format!("less than {} is no watching", Span(SHORTEST))));
    }
    if length.0 < every.0 {
        return Some(problem("for", format!("{length} is shorter than the {every} between two looks")));
    }
    let many = schedule.intervals() > MOST_LOOKS;
    many.then(|| problem("every", format!("that would be more than {MOST_LOOKS} looks")))
}

#[async_trait]
impl StepKind for Observe {
    fn spec(&self) -> KindSpec {
        let mut check = vec![Field::required("name", Type::String, "Names it in the report.")];
        check.extend(self.tools.iter().map(|tool| {
            let of = TOOLS.iter().find(|(key, _, _)| *key == tool.key).map_or("", |(_, name, _)| name);
            let summary = format!("The parameters of `{of}`.");
            Field::optional(tool.key, Type::Object(tool.fields.clone()), &summary)
        }));
        let tolerate = vec![
            Field::optional("failures", Type::Integer, "The most looks that may fail."),
            Field::optional("share", Type::Number, "The most that may fail as a part of all: 0.05 is 5 %."),
            Field::optional("in_a_row", Type::Integer, "The most that may fail one after the other."),
        ];
        let failure = vec![
            Field::required("at", Type::Timestamp, "When."),
            Field::required("check", Type::String, "Which check."),
            Field::required("why", Type::String, "What was found."),
        ];
        KindSpec::new("observe", "Looks at systems again and again for a while.", Effect::Read)
            .doc(DOC)
            .param(Field::required("every", Type::Duration, "From one look to the next; at least 100ms."))
            .param(Field::required("for", Type::Duration, "How long to watch."))
            .param(Field::optional("limit", Type::Duration, "How long one look may take; `every` if absent."))
            .param(Field::optional(
                "tolerate",
                Type::Object(tolerate),
                "How many looks may fail; none if absent.",
            ))
            .param(Field::required("checks", Type::list(Type::Object(check)), "What is looked at."))
            .output("looks", Type::Integer, "How often was looked.")
            .output("failed", Type::Integer, "How many looks failed.")
            .output("in_a_row", Type::Integer, "The most that failed one after the other.")
            .output("observed", Type::Duration, "How long was watched.")
            .output("interruptions", Type::Integer, "How often the watching was interrupted.")
            .output("failures", Type::list(Type::Object(failure)), "The last 20 failures.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let span =
            |name: &str| with.get(name).and_then(Value::as_str).and_then(|text| Span::parse(text).ok());
        let mut problems = Vec::new();
        if let (Some(every), Some(length)) = (span("every"), span("for")) {
            problems.extend(times(every, length));
        }
        let tolerance =
            with.get("tolerate").and_then(|it| serde_json::from_value::<Tolerance>(it.clone()).ok());
        problems.extend(tolerance.and_then(|it| it.problem()).map(|message| problem("tolerate", message)));
        let Some(checks) = with.get("checks").and_then(Value::as_array) else { return problems };
        if checks.is_empty() {
            problems.push(problem("checks", "nothing is watched".into()));
        }
        let checks: Vec<_> = checks.iter().filter_map(Value::as_object).collect();
        problems.extend(checks.iter().flat_map(|check| self.problems_of(check)));
        for (at, check) in checks.iter().enumerate() {
            if checks[..at].iter().any(|other| name_of(other) == name_of(check)) {
                problems.push(problem("checks", format!("there are two checks `{}`", name_of(check))));
            }
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let names: Vec<_> = params.checks.iter().map(name_of).collect();
        let action = format!("look at {} every {} for {}", names.join(", "), params.every, params.length);
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let wrong = times(params.every, params.length).map(|problem| problem.message);
        if let Some(message) = wrong.or(params.tolerate.problem()) {
            return Err(unusable(message));
        }
        let before = ctx.recorded(SEEN).and_then(|seen| serde_json::from_value::<Seen>(seen.clone()).ok());
        let mut seen = before.map_or_else(Seen::default, |mut seen| {
            seen.tally.interruptions += 1;
            seen
        });
        let looks = self.looks(ctx, &params, &mut seen.marks).await?;
        if looks.is_empty() {
            return Err(unusable("nothing is watched".into()));
        }
        let mut watching = Watching { ctx, params: &params, looks, seen, recorded: None };
        watching.record().await?;
        watching.run().await
    }
}

/// What is being watched.
struct Watching<'a> {
    ctx: &'a StepContext,
    params: &'a Params,
    looks: Vec<Look>,
    seen: Seen,
    recorded: Option<Instant>,
}

impl Watching<'_> {
    async fn run(&mut self) -> Result<Done, StepError> {
        let schedule = self.params.schedule();
        let mut due = tokio::time::Instant::now();
        loop {
            let failures = tokio::select! {
                biased;
                () = self.ctx.cancelled() => return Err(self.ended_early().await),
                failures = look(self.ctx, &mut self.looks, self.params.limit()) => failures?,
            };
            let failed = !failures.is_empty();
            self.tell(&failures);
            self.seen.tally.count(failures);
            if let Some(why) = self.params.tolerate.exceeded(&self.seen.tally, &schedule) {
                return Err(self.too_much(&why).await?);
            }
            if self.seen.tally.intervals >= schedule.intervals() {
                return self.end().await;
            }
            if failed || self.recorded.is_none_or(|at| at.elapsed() >= RECORD) {
                self.record().await?;
            }
            self.report();
            // After a look that took long, the next one comes a whole interval later.
            due = (due + self.params.every.0).max(tokio::time::Instant::now());
            tokio::select! {
                biased;
                () = self.ctx.cancelled() => return Err(self.ended_early().await),
                () = tokio::time::sleep_until(due) => {}
            }
            self.seen.tally.intervals += 1;
        }
    }

    /// Ends the watching, with what logs must have by now.
    async fn end(&mut self) -> Result<Done, StepError> {
        let (mut checks, mut lacking) = (Vec::new(), None);
        for required in self.looks.iter().filter_map(Look::at_the_end) {
            lacking = lacking.or(required.lacking);
            checks.extend(required.checks);
        }
        match lacking {
            None => {
                let mut done = self.done();
                done.checks.extend(checks);
                Ok(done)
            }
            Some(why) => {
                let mut error = self.too_much(&why).await?;
                error.checks.extend(checks);
                Err(error)
            }
        }
    }

    /// Says what one look has found, in one line.
    fn tell(&self, failures: &[Failure]) {
        let at = Timestamp::now().strftime("%H:%M:%S").to_string();
        if failures.is_empty() {
            self.ctx.line(Stream::Stdout, &format!("{at} ok"));
        }
        for failure in failures {
            self.ctx.line(Stream::Stdout, &format!("{at} FAILED {}: {}", failure.check, failure.why));
        }
    }

    fn report(&self) {
        let tally = &self.seen.tally;
        let (done, total) = (tally.observed(&self.params.schedule()).0, self.params.length.0);
        let note = format!("{} looks, {} failed", tally.looks, tally.failed);
        let (done, total) = (done.as_secs(), Some(total.as_secs()));
        self.ctx.progress(Progress { done, total, unit: Unit::Seconds, note });
    }

    async fn record(&mut self) -> Result<(), StepError> {
        self.recorded = Some(Instant::now());
        self.ctx.record(SEEN, serde_json::to_value(&self.seen).unwrap_or_default()).await
    }

    async fn ended_early(&mut self) -> StepError {
        // If it cannot be recorded any more, the next attempt knows a little less.
        drop(self.record().await);
        let observed = self.seen.tally.observed(&self.params.schedule());
        let message = format!("the watching ended after {observed} of {}", self.params.length);
        StepError::transient(codes::LB0391, message)
    }

    /// Forgets what was seen, so that another attempt begins anew, and says why it was too much.
    async fn too_much(&self, why: &str) -> Result<StepError, StepError> {
        self.ctx.record(SEEN, Value::Null).await?;
        let tally = &self.seen.tally;
        let observed = tally.observed(&self.params.schedule());
        let message = format!("{why} (after {observed} of {})", self.params.length);
        let mut error = StepError::permanent(codes::LB0390, message).help(
            "find out what fails before anything follows; `lifeboat retry` watches anew from the beginning",
        );
        let line = |it: &Failure| format!("{} {}: {}", it.at.strftime("%H:%M:%S"), it.check, it.why);
        error.causes = tally.failures.iter().rev().take(5).map(line).collect();
        Ok(error.checks(self.checks(false)))
    }

    fn checks(&self, within: bool) -> Vec<Check> {
        let tally = &self.seen.tally;
        let most = self.params.tolerate.most(&self.params.schedule());
        let check = |look: &Look| {
            let failed = tally.by_check.get(&look.name).copied().unwrap_or(0);
            Check {
                name: format!("watched: {}", look.name),
                expected: format!("at most {most} failures"),
                actual: format!("{failed} of {} looks failed", tally.looks),
                passed: within || failed == 0,
            }
        };
        self.looks.iter().map(check).collect()
    }

    fn done(&self) -> Done {
        let tally = &self.seen.tally;
        let observed = tally.observed(&self.params.schedule());
        let outputs = json!({
            "looks": tally.looks,
            "failed": tally.failed,
            "in_a_row": tally.longest,
            "observed": observed.to_string(),
            "interruptions": tally.interruptions,
            "failures": tally.failures,
        });
        let Value::Object(outputs) = outputs else { unreachable!("an object was written") };
        let mut done = Done { outputs, checks: self.checks(true), ..Done::default() };
        match tally.interruptions {
            0 => {}
            1 => done.warnings.push("the watching was interrupted once; that time was not watched".into()),
            times => done
                .warnings
                .push(format!("the watching was interrupted {times} times; that time was not watched")),
        }
        done
    }
}

/// Looks at everything at once.
async fn look(ctx: &StepContext, looks: &mut [Look], limit: Duration) -> Result<Vec<Failure>, StepError> {
    let taken = looks.iter_mut().map(async |look| {
        let found = look.take(ctx, limit).await?;
        let failure = |why| Failure { at: Timestamp::now(), check: look.name.clone(), why };
        Ok(found.err().map(failure))
    });
    let found = join_all(taken).await.into_iter().collect::<Result<Vec<_>, StepError>>()?;
    Ok(found.into_iter().flatten().collect())
}
