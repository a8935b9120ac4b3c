use std::ops::Range;

use serde_json::Value;

use super::keys::{Keys, Spanned, first_line};
use super::reader::Reader;
use super::repetition::read_repetition;
use super::retry::read_retry;
use crate::diagnostic::{Diagnostic, codes};
use crate::model::ids::is_plain_id;
use crate::plan::{Milestone, MilestoneAt, NeedOn, OnError, Retry};
use crate::step::Effect;
use crate::value::{Span, Type};
use crate::yaml::{Entry, Node, Resolved};

pub(super) const STEP_KEYS: &[&str] = &[
    "id",
    "title",
    "needs",
    "if",
    "env",
    "dir",
    "host",
    "effect",
    "probe",
    "expect",
    "retry",
    "timeout",
    "budget",
    "milestone",
    "recovered",
    "on_error",
    "undo",
    "for_each",
    "max_parallel",
    "until",
    "every",
    "uses",
    "with",
    "run",
    "runbook",
    "manual",
];
pub(super) const GROUP_KEYS: &[&str] = &[
    "group",
    "title",
    "needs",
    "if",
    "parallel",
    "max_parallel",
    "budget",
    "milestone",
    "recovered",
    "steps",
];
pub(super) const BODIES: &[&str] = &["uses", "run", "runbook", "manual"];
/// What `undo` can do.
const UNDO_BODIES: &[&str] = &["uses", "run", "manual"];
/// What may stand under `undo`.
pub(super) const UNDO_KEYS: &[&str] =
    &["title", "env", "dir", "retry", "timeout", "uses", "with", "run", "manual"];
/// What belongs to steps that do something themselves.
pub(super) const NOT_OF_CALLS: &[&str] = &[
    "env", "dir", "host", "effect", "probe", "expect", "retry", "timeout", "on_error", "undo", "until",
    "every",
];

/// One place in the order.
#[derive(Clone, Debug)]
pub enum ItemSpec {
    Step(Box<StepSpec>),
    Group(Box<GroupSpec>),
}

/// What steps and groups have in common.
#[derive(Clone, Debug)]
pub struct Common {
    pub id: Spanned<String>,
    pub title: Option<String>,
    /// `None`: after the one above.
    pub needs: Option<Vec<NeedSpec>>,
    /// A bare expression.
    pub condition: Option<Node>,
    pub budget: Option<Spanned<Span>>,
    pub milestone: Option<Spanned<Milestone>>,
    pub recovered: bool,
}

/// One name in `needs`.
#[derive(Clone, Debug)]
pub struct NeedSpec {
    pub step: Spanned<String>,
    pub on: NeedOn,
}

/// Steps that share one place.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    pub common: Common,
    pub parallel: bool,
    pub max_parallel: Option<usize>,
    pub steps: Vec<ItemSpec>,
}

/// One step.
#[derive(Clone, Debug)]
pub struct StepSpec {
    pub common: Common,
    pub body: Body,
    pub env: Option<Entry>,
    pub dir: Option<Entry>,
    pub host: Option<Entry>,
    pub probe: Option<Entry>,
    pub effect: Option<Spanned<Effect>>,
    /// Bare expressions over `output`.
    pub expect: Vec<Node>,
    pub retry: Option<Spanned<Retry>>,
    /// A bare expression over `error` and `attempt`.
    pub retry_when: Option<Node>,
    pub timeout: Option<Span>,
    pub on_error: Option<OnError>,
    pub undo: Option<UndoSpec>,
    pub repeat: Repetition,
    /// May hold templates over the element if there is a `for_each`.
    pub title: Option<Node>,
}

/// How a step is repeated.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    pub for_each: Option<Entry>,
    /// How many elements run at once.
    pub max_parallel: Option<usize>,
    pub until: Option<UntilSpec>,
}

/// What an attempt of a step waits for.
#[derive(Clone, Debug)]
pub struct UntilSpec {
    /// The key, for complaints about the whole.
    pub key: Range<usize>,
    /// A bare expression over `output`.
    pub condition: Node,
    pub every: Span,
}

/// What takes the work of a step back.
#[derive(Clone, Debug)]
pub struct UndoSpec {
    /// The bytes of the key.
    pub span: Range<usize>,
    /// What is done, as a step with the id of the one that it undoes.
    pub step: Box<StepSpec>,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Body {
    Uses {
        kind: Spanned<String>,
        with: Option<Node>,
    },
    /// `run`, `manual`: a key that stands for a kind.
    Key {
        key: Spanned<String>,
        value: Node,
    },
    /// `runbook`: the steps of another runbook.
    Call(CallSpec),
    /// None or several, which has been reported.
    Unclear,
}

/// How a step calls another runbook.
#[derive(Clone, Debug)]
pub struct CallSpec {
    pub runbook: Spanned<String>,
    /// Its inputs.
    pub with: Option<Node>,
    /// How many of its steps may run at once.
    pub max_parallel: Option<usize>,
}

impl StepSpec {
    /// Returns the call, if the step is one.
    pub fn call(&self) -> Option<&CallSpec> {
        if let Body::Call(call) = &self.body { Some(call) } else { None }
    }
}

impl ItemSpec {
    /// Returns what steps and groups have in common.
    pub fn common(&self) -> &Common {
        match self {
            Self::Step(step) => &step.common,
            Self::Group(group) => &group.common,
        }
    }
}

/// Reads a list of steps and groups; what cannot be read is left out.
pub(super) fn read_items(reader: &mut Reader<'_>, node: &Node, what: &str) -> Vec<ItemSpec> {
    let Some(nodes) = node.sequence() else {
        reader.wrong(node, "a list of steps");
        return Vec::new();
    };
    if nodes.is_empty() {
        reader.push(
            Diagnostic::error(codes::LB0105, format!("{what} has no steps"))
                .at(reader.source, node.span.clone())
                .help("add one, such as `- { id: look, effect: read, run: uptime }`"),
        );
    }
    nodes.iter().filter_map(|node| read_item(reader, node)).collect()
}

fn read_item(reader: &mut Reader<'_>, node: &Node) -> Option<ItemSpec> {
    if node.get("group").is_some() {
        read_group(reader, node).map(|group| ItemSpec::Group(Box::new(group)))
    } else {
        read_step(reader, node).map(|step| ItemSpec::Step(Box::new(step)))
    }
}

fn read_group(reader: &mut Reader<'_>, node: &Node) -> Option<GroupSpec> {
    let keys = Keys::new(reader, node, "a group", GROUP_KEYS)?;
    let common = read_common(reader, &keys, "group", "a group")?;
    let what = format!("the group `{}`", common.id.value);
    let steps = keys.need(reader, "steps", &what).map(|node| read_items(reader, node, &what));
    Some(GroupSpec {
        common,
        parallel: keys.flag(reader, "parallel").unwrap_or(false),
        max_parallel: keys.get("max_parallel").and_then(|node| read_count(reader, node)),
        steps: steps.unwrap_or_default(),
    })
}

pub(super) fn read_count(reader: &mut Reader<'_>, node: &Node) -> Option<usize> {
    let count = reader.read(node, &Type::Integer)?.as_i64()?;
    if count < 1 {
        reader.push(
            Diagnostic::error(codes::LB0106, format!("{count} steps at a time would run nothing"))
                .at(reader.source, node.span.clone())
                .help("write a number from 1 on; leave the key out for no limit"),
        );
        return None;
    }
    usize::try_from(count).ok()
}

fn read_step(reader: &mut Reader<'_>, node: &Node) -> Option<StepSpec> {
    let keys = Keys::new(reader, node, "a step", STEP_KEYS)?;
    if keys.get("runbook").is_some() {
        refuse_with_call(reader, &keys);
    }
    let common = read_common(reader, &keys, "id", "a step")?;
    let (retry, retry_when) = match keys.entry("retry") {
        Some(entry) => read_retry(reader, entry),
        None => (None, None),
    };
    let undo = keys.entry("undo").and_then(|entry| read_undo(reader, entry, &common.id));
    Some(StepSpec {
        body: read_body(reader, &keys, ("this step", BODIES)),
        undo,
        env: keys.entry("env").cloned(),
        dir: keys.entry("dir").cloned(),
        host: keys.entry("host").cloned(),
        probe: keys.entry("probe").cloned(),
        effect: read_effect(reader, &keys),
        expect: read_expect(reader, &keys),
        retry,
        retry_when,
        timeout: keys.span(reader, "timeout"),
        on_error: read_on_error(reader, &keys),
        repeat: if keys.get("runbook").is_some() {
            Repetition::default()
        } else {
            read_repetition(reader, &keys)
        },
        title: keys.get("title").cloned(),
        common,
    })
}

/// Reads what takes the work of a step back: a script, or a map with a body like a step's.
fn read_undo(reader: &mut Reader<'_>, entry: &Entry, id: &Spanned<String>) -> Option<UndoSpec> {
    let (span, node) = (entry.key.span.clone(), &entry.value);
    let mut step = StepSpec {
        common: Common {
            id: Spanned::new(id.value.clone(), span.clone()),
            title: None,
            needs: None,
            condition: None,
            budget: None,
            milestone: None,
            recovered: false,
        },
        body: Body::Unclear,
        env: None,
        dir: None,
        host: None,
        probe: None,
        effect: None,
        expect: Vec::new(),
        retry: None,
        retry_when: None,
        timeout: None,
        on_error: None,
        undo: None,
        repeat: Repetition::default(),
        title: None,
    };
    if node.scalar().is_some_and(|scalar| scalar.resolve() == Resolved::String) {
        step.body = Body::Key { key: Spanned::new("run".to_owned(), span.clone()), value: node.clone() };
    } else if let Some(call) = node.entry("runbook") {
        reader.push(
            Diagnostic::error(codes::LB0155, format!("the undo of `{}` cannot call a runbook", id.value))
                .at(reader.source, call.key.span.clone())
                .help("give it `uses`, `run` or `manual`"),
        );
        return None;
    } else if node.mapping().is_some() {
        let keys = Keys::new(reader, node, "`undo`", UNDO_KEYS)?;
        (step.retry, step.retry_when) =
            keys.entry("retry").map_or((None, None), |entry| read_retry(reader, entry));
        step.common.title = keys.text(reader, "title");
        step.env = keys.entry("env").cloned();
        step.dir = keys.entry("dir").cloned();
        step.timeout = keys.span(reader, "timeout");
        step.body = read_body(reader, &keys, ("`undo`", UNDO_BODIES));
    } else {
        let message = format!("`undo` is a script or a map, not {}", node.describe());
        reader.push(
            Diagnostic::error(codes::LB0106, message)
                .at(reader.source, node.span.clone())
                .help("write `undo: { run: … }`, or `undo: { uses: KIND, with: … }`"),
        );
        return None;
    }
    Some(UndoSpec { span, step: Box::new(step) })
}

/// Refuses what a step that calls a runbook cannot have.
fn refuse_with_call(reader: &mut Reader<'_>, keys: &Keys<'_>) {
    for entry in NOT_OF_CALLS.iter().filter_map(|key| keys.entry(key)) {
        let key = &entry.key.text;
        reader.push(
            Diagnostic::error(codes::LB0104, format!("a step that calls a runbook takes no `{key}`"))
                .at(reader.source, entry.key.span.clone())
                .help(format!("say `{key}` on the steps of the runbook that is called")),
        );
    }
    if let Some(entry) = keys.entry("for_each") {
        reader.push(
            Diagnostic::error(
                codes::LB0153,
                "a step that calls a runbook cannot be repeated with `for_each`",
            )
            .at(reader.source, entry.key.span.clone())
            .help("give the runbook the list as an input, and say `for_each` on its steps"),
        );
    }
}

fn read_call(reader: &mut Reader<'_>, keys: &Keys<'_>, node: &Node) -> Option<CallSpec> {
    Some(CallSpec {
        runbook: Spanned::new(reader.text(node)?, node.span.clone()),
        with: keys.get("with").cloned(),
        max_parallel: keys.get("max_parallel").and_then(|node| read_count(reader, node)),
    })
}

fn read_common(reader: &mut Reader<'_>, keys: &Keys<'_>, id_key: &str, what: &str) -> Option<Common> {
    let id = read_id(reader, keys, id_key, what)?;
    Some(Common {
        title: keys.text(reader, "title"),
        needs: keys.get("needs").map(|node| read_needs(reader, node)),
        condition: keys.get("if").and_then(|node| checked_condition(reader, node)),
        budget: keys
            .get("budget")
            .and_then(|node| reader.duration(node).map(|span| Spanned::new(span, node.span.clone()))),
        milestone: keys.get("milestone").and_then(|node| read_milestone(reader, node)),
        recovered: keys.flag(reader, "recovered").unwrap_or(false),
        id,
    })
}

/// Checks the form of a bare expression and keeps its node, for the checks of its names.
pub(super) fn checked_condition(reader: &mut Reader<'_>, node: &Node) -> Option<Node> {
    let before = reader.sites.len();
    let found = reader.condition(node, &[]);
    reader.sites.truncate(before);
    found.map(|_| node.clone())
}

fn read_id(reader: &mut Reader<'_>, keys: &Keys<'_>, key: &str, what: &str) -> Option<Spanned<String>> {
    let Some(node) = keys.need(reader, key, what) else {
        // A name that nobody can write, so that the rest is checked all the same.
        let span = first_line(reader, &keys.node.span);
        let line = reader.source.position(span.start).line;
        return Some(Spanned::new(format!("line {line}"), span));
    };
    let text = reader.text(node)?;
    if is_plain_id(&text) {
        return Some(Spanned::new(text, node.span.clone()));
    }
    let plain: String = text.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let mut diagnostic = Diagnostic::error(codes::LB0110, format!("`{text}` is not an id"))
        .at(reader.source, node.span.clone())
        .help("a lower-case letter, then lower-case letters, digits and `_`");
    if is_plain_id(&plain) {
        diagnostic = diagnostic.fix(node.span.clone(), plain.clone());
    }
    reader.push(diagnostic);
    // Going on under the corrected name finds what else is wrong with the step.
    is_plain_id(&plain).then(|| Spanned::new(plain, node.span.clone()))
}

fn read_needs(reader: &mut Reader<'_>, node: &Node) -> Vec<NeedSpec> {
    let Some(nodes) = node.sequence() else {
        let mut diagnostic =
            Diagnostic::error(codes::LB0106, format!("`needs` is a list, not {}", node.describe()))
                .at(reader.source, node.span.clone())
                .help("write a list, also for one step");
        let Some(name) = node.text().filter(|name| is_plain_id(name)) else {
            reader.push(diagnostic);
            return Vec::new();
        };
        diagnostic = diagnostic.fix(node.span.clone(), format!("[{name}]"));
        reader.push(diagnostic);
        let step = Spanned::new(name.to_owned(), node.span.clone());
        return vec![NeedSpec { step, on: NeedOn::Success }];
    };
    nodes.iter().filter_map(|node| read_need(reader, node)).collect()
}

fn read_need(reader: &mut Reader<'_>, node: &Node) -> Option<NeedSpec> {
    if node.mapping().is_none() {
        let step = reader.text(node)?;
        return Some(NeedSpec { step: Spanned::new(step, node.span.clone()), on: NeedOn::Success });
    }
    let keys = Keys::new(reader, node, "a need", &["step", "on"])?;
    let step_node = keys.need(reader, "step", "a need")?;
    let step = reader.text(step_node)?;
    let on = match read_word(reader, keys.get("on"), &["success", "failure", "any"]).as_deref() {
        Some("failure") => NeedOn::Failure,
        Some("any") => NeedOn::Any,
        _ => NeedOn::Success,
    };
    Some(NeedSpec { step: Spanned::new(step, step_node.span.clone()), on })
}

fn read_word(reader: &mut Reader<'_>, node: Option<&Node>, words: &[&str]) -> Option<String> {
    match reader.read(node?, &Type::choice(words))? {
        Value::String(word) => Some(word),
        _ => None,
    }
}

fn read_milestone(reader: &mut Reader<'_>, node: &Node) -> Option<Spanned<Milestone>> {
    if node.mapping().is_none() {
        let name = reader.text(node)?;
        return Some(Spanned::new(Milestone { name, at: MilestoneAt::Succeeded }, node.span.clone()));
    }
    let keys = Keys::new(reader, node, "a milestone", &["name", "at"])?;
    let name_node = keys.need(reader, "name", "a milestone")?;
    let name = reader.text(name_node)?;
    let at = match read_word(reader, keys.get("at"), &["started", "succeeded"]).as_deref() {
        Some("started") => MilestoneAt::Started,
        _ => MilestoneAt::Succeeded,
    };
    Some(Spanned::new(Milestone { name, at }, name_node.span.clone()))
}

/// Reads what a step does: exactly one of the keys offered.
fn read_body(reader: &mut Reader<'_>, keys: &Keys<'_>, (what, offered): (&str, &[&str])) -> Body {
    let bodies: Vec<_> = offered.iter().filter_map(|key| keys.entry(key)).collect();
    let [entry] = bodies.as_slice() else {
        let span =
            bodies.get(1).map_or_else(|| first_line(reader, &keys.node.span), |entry| entry.key.span.clone());
        let wrong = if bodies.is_empty() { "does nothing" } else { "has several bodies" };
        let quoted: Vec<_> = offered.iter().map(|key| format!("`{key}`")).collect();
        let (last, others) =
            quoted.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
        reader.push(
            Diagnostic::error(codes::LB0115, format!("{what} {wrong}"))
                .at(reader.source, span)
                .help(format!("give exactly one of {} and {last}", others.join(", "))),
        );
        return Body::Unclear;
    };
    match entry.key.text.as_str() {
        "uses" => match reader.text(&entry.value) {
            Some(kind) => {
                let kind = Spanned::new(kind, entry.value.span.clone());
                Body::Uses { kind, with: keys.get("with").cloned() }
            }
            None => Body::Unclear,
        },
        "runbook" => read_call(reader, keys, &entry.value).map_or(Body::Unclear, Body::Call),
        key => {
            if let Some(with) = keys.entry("with") {
                let message = format!("`with` belongs to `uses` and `runbook`, not to `{key}`");
                reader.push(
                    Diagnostic::error(codes::LB0104, message)
                        .at(reader.source, with.key.span.clone())
                        .help(format!("remove it; give values to a script by `env`, or write all parameters under `{key}`")),
                );
            }
            Body::Key {
                key: Spanned::new(key.to_owned(), entry.key.span.clone()),
                value: entry.value.clone(),
            }
        }
    }
}

fn read_effect(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<Spanned<Effect>> {
    let Some(node) = keys.get("effect") else {
        // Written under a name that is nearly right, which has been reported, it is not missing.
        let effect = if keys.get("probe").is_some() { Effect::Guarded } else { Effect::Idempotent };
        return keys.misspelt("effect").then(|| Spanned::new(effect, keys.node.span.clone()));
    };
    let word = read_word(reader, Some(node), &["read", "idempotent", "guarded", "once"]);
    let effect = match word.as_deref() {
        Some("read") => Effect::Read,
        Some("guarded") => Effect::Guarded,
        Some("once") => Effect::Once,
        // What is no effect has been reported; one that fits the rest of the step draws no second error.
        None if keys.get("probe").is_some() => Effect::Guarded,
        _ => Effect::Idempotent,
    };
    Some(Spanned::new(effect, node.span.clone()))
}

fn read_expect(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Vec<Node> {
    let Some(node) = keys.get("expect") else { return Vec::new() };
    let before = reader.sites.len();
    reader.read(node, &Type::conditions(&["output"]));
    reader.sites.drain(before..).map(|site| site.node).collect()
}

fn read_on_error(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<OnError> {
    match read_word(reader, keys.get("on_error"), &["hold", "abort", "continue"])?.as_str() {
        "hold" => Some(OnError::Hold),
        "abort" => Some(OnError::Abort),
        _ => Some(OnError::Continue),
    }
}
