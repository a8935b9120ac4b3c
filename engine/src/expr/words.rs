use super::evaluate::ExprError;
use super::filters::{FILTERS, TESTS};
use crate::diagnostic::nearest;

/// Says in our words why an expression cannot be read, and what to do about it.
pub(super) fn explain(error: &minijinja::Error, text: &str) -> ExprError {
    let single_equals = || error.range().and_then(|range| text.get(range)).is_some_and(|found| found == "=");
    if text.trim().is_empty() {
        let help = "write a condition, such as `vars.site == 'x'`, or remove the key";
        return ExprError { help: Some(help.to_owned()), ..ExprError::new("nothing is written here") };
    }
    let told = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    let (message, help) = match told.as_str() {
        "unexpected input after expression" if single_equals() => {
            ("a single `=` means nothing here".to_owned(), "write `==` to compare two values")
        }
        "unexpected input after expression" => (
            "the expression has ended, and something follows".to_owned(),
            "join conditions by `and` or `or`, texts by `~`, and put text into quotes",
        ),
        "unexpected character" => (
            "this sign means nothing in an expression".to_owned(),
            "the words `and`, `or` and `not` join conditions; `==`, `!=`, `<`, `>` compare",
        ),
        "unexpected end of string" => {
            ("a quote is never closed".to_owned(), "add the quote that closes the text")
        }
        "template exceeds maximum recursion limits" => {
            ("the expression nests too deeply".to_owned(), "split it: let a step compute the inner part")
        }
        "empty subscript" => {
            ("nothing stands between `[` and `]`".to_owned(), "write a position or a name: `rows[0]`")
        }
        "unexpected end of variable block" => (
            "nothing stands between `{{` and `}}`".to_owned(),
            "write an expression there, such as `{{ vars.site }}`",
        ),
        told => return unexpected(told, error),
    };
    ExprError { message, range: error.range(), help: Some(help.to_owned()) }
}

/// Translates `unexpected X, expected Y`.
fn unexpected(told: &str, error: &minijinja::Error) -> ExprError {
    let range = error.range();
    if let Some(statement) = told.strip_prefix("unknown statement ") {
        let help = "the statements are `if`, `for` and `set`; write `{% raw %}…{% endraw %}` around text with `{%` in it";
        let message = format!("there is no statement `{statement}`");
        return ExprError { message, range, help: Some(help.to_owned()) };
    }
    let Some((found, wanted)) =
        told.strip_prefix("unexpected ").and_then(|rest| rest.split_once(", expected "))
    else {
        return ExprError { message: told.to_owned(), range, help: None };
    };
    let help = match (found, wanted) {
        ("`=`", _) => "`==` compares two values; a single `=` means nothing here",
        ("end of input", "end of variable block") => "close the template with `}}`",
        ("end of input", _) if wanted.contains("block") || wanted.contains("end") => {
            "close the statement: `{% if … %}…{% endif %}`"
        }
        ("end of input", _) => "write what belongs after the last sign, or remove that sign",
        ("end of variable block", "expression" | "identifier") => "write an expression between `{{` and `}}`",
        (_, "end of variable block") => {
            "close the template with `}}`; text in an expression stands in quotes"
        }
        _ => "check brackets and quotes, and that every sign has a value on both sides",
    };
    let message = format!("{} stands where {} belongs", token(found), token(wanted));
    ExprError { message, range, help: Some(help.to_owned()) }
}

fn token(word: &str) -> String {
    match word {
        "end of input" => "the end".to_owned(),
        "expression" => "a value".to_owned(),
        "identifier" => "a name".to_owned(),
        "end of variable block" => "`}}`".to_owned(),
        "start of variable block" => "`{{`".to_owned(),
        "end of block" => "`%}`".to_owned(),
        "start of block" => "`{%`".to_owned(),
        "string" => "a text in quotes".to_owned(),
        "integer" | "float" => "a number".to_owned(),
        other => other.to_owned(),
    }
}

/// Says what to write instead of a filter, a test or a function that does not exist.
pub(super) fn instead_of(what: &str, name: &str) -> Option<String> {
    let known: &[&str] = match what {
        "filter" => FILTERS,
        "test" => TESTS,
        _ => &["range", "dict"],
    };
    let near = nearest(name, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    let all = |intro: &str| Some(format!("{intro}: {}", known.join(", ")));
    near.or_else(|| match (what, name) {
        ("function", "now") => Some("the moment the incident began is `incident.started_at`".to_owned()),
        ("function", "len") => Some("write `list | length`".to_owned()),
        ("function", _) => Some("values are changed by filters, as in `steps.x.size | bytes`".to_owned()),
        ("filter", _) => all("the filters are"),
        _ => all("the tests are"),
    })
}
