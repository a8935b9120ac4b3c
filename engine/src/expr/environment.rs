use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::filters;

/// Enough for any expression that a person would write; stops loops that were built to hang.
const FUEL: u64 = 50_000;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(build);

/// Returns the one environment in which everything is evaluated.
pub(super) fn environment() -> &'static Environment<'static> {
    &ENVIRONMENT
}

fn build() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(syntax());
    environment.set_formatter(print);
    // What it holds grows with every turn of a loop.
    environment.remove_global("namespace");
    filters::register(&mut environment);
    environment
}

/// Trailing line breaks stay, and `{#`, which bash uses, begins no comment.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .comment_delimiters("{##", "##}")
        .keep_trailing_newline(true)
        .build()
        .expect("the delimiters differ from each other")
}

/// Writes a value into text. What has no one obvious text is refused, rather than printed in a form that no program
/// reads.
fn print(out: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "true" } else { "false" })?),
        ValueKind::Number | ValueKind::String => Ok(write!(out, "{value}")?),
        ValueKind::Undefined => Err(Error::new(ErrorKind::UndefinedError, "the value is undefined")),
        ValueKind::None => {
            Err(Error::new(ErrorKind::BadSerialization, "the value is null: add `| default(\"…\", true)`"))
        }
        kind => Err(Error::new(
            ErrorKind::BadSerialization,
            format!("a {kind} cannot stand in a text: add `| tojson`, or name one of its values"),
        )),
    }
}
