//! `logs.check`: what a log must and must not have.

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::codes;
use super::judge::When;
use super::watch::{self, Ending, Mark, Start, Watch};

/// Looks for what must and must not be in a log.
#[derive(Debug)]
pub(super) struct Check;

#[derive(Deserialize)]
struct Params {
    since: Option<Timestamp>,
    mark: Option<Mark>,
}

const DOC: &str = "\
Patterns are regular expressions, looked for within each line; bytes that are no UTF-8 do no harm. Each one is a check in
the report with how many lines have it. The step fails if a line is there that `deny` does not allow, or one is not there
that `require` wants; the error shows the first lines, without secrets and cut.

`since` leaves out lines that are older than a moment: `\"{{ run.started_at }}\"` is the start of the run. Then lines must
begin with their time, in one of the usual forms (RFC 3339, `2026-11-21 03:12:00,123`, syslog, web servers, seconds since
1970, a key of JSON) or as `timestamp` says; a line without one belongs to the line before. With `mark`, what came behind
the place that `logs.mark` has remembered is read, and no times are needed. With neither, all that is there.

Of a file, those that it was rotated to are read as well as far as they matter (`app.log.1`, `app.log.2.gz`,
`app.log-20261121`; plain, gzip, zstd). A file that was rotated away meanwhile, or emptied, is an error. Of a service, it is
the journal of its unit, the log of its container, or the `log_file` of its process.

```yaml
- { id: before, uses: logs.mark, with: { service: app } }
- { id: restart, uses: service.restart, with: { service: app } }
- id: quiet
  uses: logs.check
  with:
    service: app
    mark: \"{{ steps.before.mark }}\"
    require: [{ pattern: listening on }]
    deny: [{ pattern: ERROR|FATAL, max: 2 }]
    ignore: [deprecat]
```";

#[async_trait]
impl StepKind for Check {
    fn spec(&self) -> KindSpec {
        let spec = KindSpec::new("logs.check", "Looks for what must and must not be in a log.", Effect::Read);
        let excerpt = vec![
            Field::required("pattern", Type::String, "What found it."),
            Field::required("place", Type::String, "File and line, or the time of the entry."),
            Field::required("text", Type::String, "Its beginning, without secrets."),
        ];
        watch::fields()
            .into_iter()
            .fold(spec.doc(DOC), KindSpec::param)
            .param(Field::optional("since", Type::Timestamp, "Lines from this moment on."))
            .param(Field::optional(
                "mark",
                Type::Any,
                "Lines behind the place that `logs.mark` has remembered.",
            ))
            .output("lines", Type::Integer, "How many lines were looked at.")
            .output("bytes", Type::Integer, "How much was read.")
            .output("counts", Type::map(Type::Integer), "How many lines each pattern has found, by its name.")
            .output("found", Type::list(Type::Object(excerpt)), "The first five lines of each pattern.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let mut problems = watch::problems(with);
        let nothing = |param: &str| with.get(param).and_then(Value::as_array).is_none_or(Vec::is_empty);
        if with.contains_key("since") && with.contains_key("mark") {
            let message = "`since` and `mark` cannot both be given".into();
            problems.push(ParamProblem { param: "mark".into(), message, help: None });
        }
        let written = with.contains_key("deny") || with.contains_key("require");
        if written && nothing("deny") && nothing("require") {
            let param = if with.contains_key("deny") { "deny" } else { "require" };
            let message = "nothing is looked for".into();
            problems.push(ParamProblem { param: param.into(), message, help: None });
        }
        problems
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let asks =
            |param: &str| ctx.with().get(param).and_then(Value::as_array).is_some_and(|it| !it.is_empty());
        if !asks("deny") && !asks("require") {
            return Err(StepError::permanent(codes::LB1354, "nothing is looked for in the log")
                .help("give `deny`, `require` or both"));
        }
        let start = match (params.mark, params.since) {
            (Some(mark), None) => Start::Mark(mark),
            (None, Some(since)) => Start::Moment(since),
            (None, None) => Start::Everything,
            (Some(_), Some(_)) => {
                return Err(StepError::permanent(codes::LB1354, "`since` and `mark` cannot both be given"));
            }
        };
        let mut watch = Watch::begin(ctx, start, Ending::Counts)?;
        watch.look(ctx).await?;
        let checks = watch.verdict(When::AtTheEnd)?;
        let Value::Object(outputs) = watch.outputs() else { unreachable!("outputs are a map") };
        Ok(Done { outputs, checks, warnings: watch.warning().into_iter().collect(), ..Done::default() })
    }
}
