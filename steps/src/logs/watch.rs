//! A log that is read bit by bit.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::step::{ParamProblem, StepContext, StepError};
use lifeboat_engine::value::{Field, Type};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::codes;
use super::file::{self, From, Position};
use super::judge::{Judge, Rule, When, compiled};
use super::source::{self, Named, Source};
use super::stream::{self, Reached};
use super::time::Clock;
use crate::store::{Meter, blocking};

/// What a log is looked at for.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(flatten)]
    named: Named,
    #[serde(default)]
    require: Vec<Rule>,
    #[serde(default)]
    deny: Vec<Rule>,
    #[serde(default)]
    ignore: Vec<String>,
    timestamp: Option<String>,
    timezone: Option<String>,
}

/// Describes it.
pub(super) fn fields() -> Vec<Field> {
    let rule = |bound: Vec<Field>| {
        let mut fields = vec![
            Field::required(
                "pattern",
                Type::String,
                "A regular expression that is looked for within each line.",
            ),
            Field::optional("name", Type::String, "Names it in the report; the pattern itself if absent."),
        ];
        fields.extend(bound);
        Type::list(Type::Object(fields))
    };
    let most = |summary: &str| Field::optional("max", Type::Integer, summary);
    let least = Field::optional("min", Type::Integer, "The fewest lines with it; 1 if absent.");
    let mut fields = source::fields();
    fields.extend([
        Field::optional(
            "deny",
            rule(vec![most("The most lines with it; 0 if absent.")]),
            "What must not be there.",
        ),
        Field::optional("require", rule(vec![least, most("The most lines with it.")]), "What must be there."),
        Field::optional("ignore", Type::list(Type::String), "Lines with one of these are not looked at."),
        Field::optional(
            "timestamp",
            Type::String,
            "How the time is written at the beginning of a line: `%d.%m.%Y %H:%M:%S`; found out if absent.",
        ),
        Field::optional(
            "timezone",
            Type::String,
            "What times without a zone are in, such as `Europe/Berlin`; the machine's own if absent.",
        ),
    ]);
    fields
}

/// Says what is wrong with the parameters regardless of any value.
pub(crate) fn problems(with: &Map<String, Value>) -> Vec<ParamProblem> {
    let problem = |param: &str, message: String| ParamProblem { param: param.into(), message, help: None };
    let mut problems: Vec<ParamProblem> = source::problem(with, false).into_iter().collect();
    for param in ["deny", "require", "ignore"] {
        for rule in with.get(param).and_then(Value::as_array).into_iter().flatten() {
            let text = rule.as_str().or_else(|| rule.get("pattern")?.as_str());
            let wrong = text.and_then(|text| compiled(text).err());
            problems.extend(wrong.map(|message| problem(param, message)));
            let bound = |key: &str| rule.get(key).and_then(Value::as_i64);
            if bound("min").is_some_and(|min| min < 0 || bound("max").is_some_and(|max| max < min)) {
                problems.push(problem(param, "`min` is beyond `max`, or negative".into()));
            }
        }
    }
    if let Some(Err(message)) = with.get("timezone").and_then(Value::as_str).map(|name| zone(Some(name))) {
        problems.push(problem("timezone", message));
    }
    problems
}

fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    match name {
        None => Ok(TimeZone::system()),
        Some(name) => TimeZone::get(name).map_err(|_| format!("`{name}` is no time zone that is known here")),
    }
}

/// Whether a log is read for the last time, so that a line without an end counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Counts,
    Grows,
}

/// What passes every line on: from when on it counts, and how much was seen.
#[derive(Debug)]
pub(super) struct Scan {
    judge: Judge,
    since: Option<Timestamp>,
    clock: Clock,
    redactor: Redactor,
    pub(super) ending: Ending,
    /// The time of the last line that had one.
    last: Option<Timestamp>,
    /// How many lines there were, and how many of them had a time.
    seen: u64,
    timed: u64,
    pub(super) cut: u64,
    meter: Meter,
}

impl Scan {
    pub(super) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Takes a line, with its time where the source knows it.
    pub(super) fn take(&mut self, text: &[u8], at: Option<Timestamp>, place: impl FnMut() -> String) {
        self.seen += 1;
        if let Some(since) = self.since {
            if let Some(own) = at.or_else(|| self.clock.read(text)) {
                self.last = Some(own);
                self.timed += 1;
            }
            if self.last.is_none_or(|last| last < since) {
                return;
            }
        }
        self.judge.take(text, place);
    }

    /// Counts bytes, and fails if the step must end.
    pub(super) fn advance(&self, bytes: u64) -> Result<(), StepError> {
        self.meter.advance(bytes)
    }
}

/// Where a log ended at some moment, as later steps get it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mark {
    at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<Position>,
}

impl Mark {
    /// Marks the end of a log.
    pub(super) async fn of(source: &Source) -> Result<Self, StepError> {
        let at = Timestamp::now();
        let Source::File(path) = source else { return Ok(Self { at, file: None }) };
        let path = path.clone();
        Ok(Self { at, file: Some(blocking(move || file::end_of(&path)).await?) })
    }
}

/// Where the looking begins.
#[derive(Clone, Debug)]
pub(super) enum Start {
    Everything,
    Moment(Timestamp),
    Mark(Mark),
}

/// A log that is looked at once, or again and again; then each look counts what is new.
#[derive(Debug)]
pub(crate) struct Watch {
    source: Source,
    since: Option<Timestamp>,
    from: From,
    reached: Reached,
    /// `None` after a look that failed in the middle: what it had counted is not known.
    scan: Option<Scan>,
    /// What it began with, to begin anew.
    wanted: Value,
    mark: Option<Mark>,
}

impl Watch {
    /// Marks the end of the log that parameters name, for [`behind`](Self::behind).
    pub(crate) async fn mark(ctx: &StepContext) -> Result<Mark, StepError> {
        let wanted: Wanted = ctx.params()?;
        Mark::of(&wanted.named.source(ctx)?).await
    }

    /// Begins to watch what comes behind a mark.
    pub(crate) fn behind(ctx: &StepContext, mark: Mark) -> Result<Self, StepError> {
        Self::begin(ctx, Start::Mark(mark), Ending::Grows)
    }

    pub(super) fn begin(ctx: &StepContext, start: Start, ending: Ending) -> Result<Self, StepError> {
        let wanted: Wanted = ctx.params()?;
        let source = wanted.named.source(ctx)?;
        let zone = zone(wanted.timezone.as_deref())
            .map_err(|message| StepError::permanent(codes::LB1354, message))?;
        let judge = Judge::new((&wanted.require, &wanted.deny), &wanted.ignore, ctx.redactor().clone())?;
        let is_file = matches!(source, Source::File(_));
        let (since, from) = match &start {
            Start::Everything => (None, From::Beginning),
            Start::Moment(moment) => (Some(*moment), From::Moment(*moment)),
            Start::Mark(Mark { file: Some(position), .. }) if is_file => {
                (None, From::Position(position.clone()))
            }
            Start::Mark(Mark { at, file: None }) if !is_file => (Some(*at), From::Moment(*at)),
            Start::Mark(_) => {
                return Err(StepError::permanent(codes::LB1354, format!("the mark is not one of {source}"))
                    .help("mark the same log that is checked"));
            }
        };
        let mark = if let Start::Mark(mark) = start { Some(mark) } else { None };
        let scan = Scan {
            judge,
            since,
            clock: Clock::new(zone, wanted.timestamp.clone(), Timestamp::now()),
            redactor: ctx.redactor().clone(),
            ending,
            last: None,
            seen: 0,
            timed: 0,
            cut: 0,
            meter: Meter::silent(),
        };
        let wanted = ctx.with().clone();
        Ok(Self { source, since, from, reached: Reached::default(), scan: Some(scan), wanted, mark })
    }

    /// Reads what is new.
    pub(crate) async fn look(&mut self, ctx: &StepContext) -> Result<(), StepError> {
        let Some(mut scan) = self.scan.take() else {
            let Some(mark) = self.mark.clone() else {
                return Err(StepError::permanent(codes::LB1351, format!("{} was read in part", self.source)));
            };
            let again = ctx.look(self.wanted.clone(), ctx.link());
            *self = Self::begin(&again, Start::Mark(mark), Ending::Grows)?;
            return Box::pin(self.look(ctx)).await;
        };
        scan.meter = Meter::bytes(ctx, None, &format!("reading {}", self.source));
        let scan = match &self.source {
            Source::File(path) => {
                let (path, from) = (path.clone(), self.from.clone());
                let (scan, position) = blocking(move || {
                    let position = file::read(&mut scan, &path, &from)?;
                    Ok((scan, position))
                })
                .await?;
                self.from = From::Position(position);
                scan
            }
            source => {
                let reached = std::mem::take(&mut self.reached);
                let (scan, reached) = stream::read(ctx, source, (scan, reached), self.since).await?;
                self.reached = reached;
                scan
            }
        };
        if scan.since.is_some() && scan.seen > 0 && scan.timed == 0 {
            return Err(no_times(&self.source, scan.seen));
        }
        self.scan = Some(scan);
        Ok(())
    }

    /// Judges what was read so far. A log that could not be read has nothing that could be judged.
    pub(crate) fn verdict(&self, when: When) -> Result<Vec<Check>, StepError> {
        match (&self.scan, when) {
            (Some(scan), _) => scan.judge.verdict(&self.source.to_string(), when),
            (None, When::SoFar) => Ok(Vec::new()),
            (None, When::AtTheEnd) => {
                let message = format!("{} could not be read at the end", self.source);
                Err(StepError::permanent(codes::LB1351, message))
            }
        }
    }

    /// Returns what was read so far, as outputs.
    pub(super) fn outputs(&self) -> Value {
        let Some(scan) = &self.scan else { return json!({}) };
        json!({
            "lines": scan.judge.lines,
            "bytes": scan.meter.done(),
            "counts": scan.judge.counts(),
            "found": scan.judge.excerpts(),
        })
    }

    /// Says what of the log could not be looked at.
    pub(super) fn warning(&self) -> Option<String> {
        let cut = self.scan.as_ref().map(|scan| scan.cut).filter(|cut| *cut > 0)?;
        let lines = if cut == 1 { "a line is".to_owned() } else { format!("{cut} lines are") };
        Some(format!("{lines} longer than 1 MiB; what is behind that was not looked at"))
    }
}

fn no_times(source: &Source, lines: u64) -> StepError {
    let message = match lines {
        1 => format!("the only line of {source} has no time that can be read"),
        _ => format!("none of the {lines} lines of {source} has a time that can be read"),
    };
    StepError::permanent(codes::LB1352, message)
        .help("say how it is written with `timestamp`, or remember where the log ends with `logs.mark`")
}
