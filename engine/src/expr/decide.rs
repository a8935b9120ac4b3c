use minijinja::machinery::{self, ast};
use serde_json::{Map, Value};

use super::evaluate::{describe, holds};
use super::references::references;
use super::template::Shape;

/// Says why a condition is false for certain, from the names that are known; `None` if it may be true.
///
/// Of a condition that is joined with `and`, one false part decides. A part that reads a name which is not given, such as
/// the output of a step before the run, decides nothing.
pub fn known_false(condition: &str, names: &Map<String, Value>) -> Option<String> {
    let Ok(parsed) = machinery::parse_expr(condition) else { return None };
    let mut parts = Vec::new();
    conjuncts(&parsed, condition, &mut parts);
    parts.into_iter().find(|part| is_false(part, names)).map(|part| reason(part, names))
}

/// Says whether everything that a condition reads is known and makes it true.
pub fn known_true(condition: &str, names: &Map<String, Value>) -> bool {
    is_known(condition, names) && holds(condition, names) == Ok(true)
}

fn conjuncts<'t>(expr: &ast::Expr<'_>, text: &'t str, parts: &mut Vec<&'t str>) {
    if let ast::Expr::BinOp(op) = expr
        && matches!(op.op, ast::BinOpKind::ScAnd)
    {
        conjuncts(&op.left, text, parts);
        conjuncts(&op.right, text, parts);
        return;
    }
    let span = expr.span();
    parts.extend(text.get(span.start_offset as usize..span.end_offset as usize).map(str::trim));
}

fn is_known(part: &str, names: &Map<String, Value>) -> bool {
    let read = references(part, Shape::Expression).unwrap_or_default();
    !read.is_empty() && read.iter().all(|it| it.path.first().is_some_and(|root| names.contains_key(root)))
}

fn is_false(part: &str, names: &Map<String, Value>) -> bool {
    is_known(part, names) && holds(part, names) == Ok(false)
}

fn reason(part: &str, names: &Map<String, Value>) -> String {
    if let Some(name) = part.strip_suffix(" is defined") {
        return format!("{} is not defined here", name.trim());
    }
    match describe(part, names) {
        values if values.is_empty() => format!("`{part}` is false"),
        values => format!("`{part}` is false: {values}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn why(condition: &str) -> Option<String> {
        let names = json!({
            "inputs": { "careful": false, "depth": "quick" },
            "resources": { "db": { "kind": "postgres" } },
        });
        known_false(condition, names.as_object().unwrap())
    }

    #[test]
    fn what_is_certain_before_the_run_is_said_with_its_reason() {
        assert_eq!(why("resources.cache is defined").unwrap(), "resources.cache is not defined here");
        assert_eq!(why("inputs.careful").unwrap(), "`inputs.careful` is false: inputs.careful = false");
        assert_eq!(why("resources.db is defined"), None);
        assert_eq!(why("inputs.depth == 'quick' and not inputs.careful"), None);
    }

    #[test]
    fn one_false_part_decides_and_an_unknown_one_does_not() {
        let both = "steps.a.n > 0 and resources.cache is defined";
        assert_eq!(why(both).unwrap(), "resources.cache is not defined here");
        assert_eq!(why("steps.a.n | default(0) > 0"), None);
        assert_eq!(why("steps.a is defined"), None);
        assert_eq!(why("inputs.careful or steps.a.n > 0"), None);
        assert_eq!(why("(inputs.careful or inputs.careful) and steps.a.n > 0").is_some(), true);
    }
}
