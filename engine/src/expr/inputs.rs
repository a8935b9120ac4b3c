use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::evaluate::brief;
use super::fit::fit;
use super::template::{evaluate_text, has_template};
use crate::diagnostic::nearest_help;
use crate::value::{Field, Type};

/// What a runbook asks to be told before it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputDecl {
    pub name: String,
    #[serde(rename = "type")]
    pub ty: Type,
    /// A regular expression that the whole text must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// A value, or a template over `incident`, `vars`, `resources` and inputs declared before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

impl InputDecl {
    /// Describes it as a parameter that may be left out: its default is filled in by [`bind_inputs`].
    pub(crate) fn as_field(&self) -> Field {
        Field::optional(&self.name, self.ty.clone(), &self.description)
    }

    /// Says why the pattern is no regular expression, if it is none.
    pub fn pattern_error(&self) -> Option<String> {
        let pattern = self.pattern.as_ref()?;
        let error = regex::Regex::new(&format!("^(?:{pattern})$")).err()?;
        Some(format!("not a regular expression: {}", error.to_string().lines().last().unwrap_or_default()))
    }

    /// Checks a value, brought to its type, against the pattern.
    pub(crate) fn check_pattern(&self, value: &Value) -> Result<(), String> {
        let (Some(pattern), Some(text)) = (&self.pattern, value.as_str()) else { return Ok(()) };
        let regex = crate::pattern::whole(pattern)
            .map_err(|error| format!("the pattern of the input `{}` is not valid: {error}", self.name))?;
        if regex.is_match(text) {
            return Ok(());
        }
        Err(format!("the input `{}`: {} does not match {pattern}", self.name, brief(value)))
    }
}

/// What is wrong with one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputProblem {
    pub input: String,
    pub kind: ProblemKind,
    pub message: String,
    pub help: Option<String>,
}

/// In which way an input is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    Missing,
    /// Not declared.
    Unknown,
    /// Of another type, or against its pattern.
    Invalid,
}

/// Gives every declared input its value: the one given, brought to its type, or its default. All problems are found
/// at once. Texts, as a command line gives them, are read as the type that is declared.
pub fn bind_inputs(
    declared: &[InputDecl],
    given: &Map<String, Value>,
    names: &Map<String, Value>,
) -> Result<Map<String, Value>, Vec<InputProblem>> {
    let mut problems: Vec<_> = given
        .keys()
        .filter(|name| declared.iter().all(|input| &input.name != *name))
        .map(|name| unknown(name, declared))
        .collect();
    let mut names = names.clone();
    let mut bound = Map::new();
    for input in declared {
        names.insert("inputs".to_owned(), Value::Object(bound.clone()));
        match bind_input(input, given.get(&input.name), &names) {
            Ok(value) => {
                bound.insert(input.name.clone(), value);
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(bound) } else { Err(problems) }
}

fn unknown(name: &str, declared: &[InputDecl]) -> InputProblem {
    InputProblem {
        input: name.to_owned(),
        kind: ProblemKind::Unknown,
        message: format!("the runbook has no input `{name}`"),
        help: nearest_help(name, "its inputs", declared.iter().map(|input| input.name.as_str())),
    }
}

/// Gives one input its value: the one given, brought to its type, or its default. `names` holds what the default reads.
pub fn bind_input(
    input: &InputDecl,
    given: Option<&Value>,
    names: &Map<String, Value>,
) -> Result<Value, InputProblem> {
    let problem = |kind, message: String| InputProblem {
        input: input.name.clone(),
        kind,
        message,
        help: Some(format!("give it with `-i {}=VALUE` ({})", input.name, hint(input))),
    };
    let value = match (given, &input.default) {
        (Some(value), _) => read_text(value, &input.ty),
        (None, Some(Value::String(text))) if has_template(text) => {
            evaluate_text(text, names).map_err(|error| {
                problem(ProblemKind::Missing, format!("the input `{}` has no value: {error}", input.name))
            })?
        }
        (None, Some(default)) => default.clone(),
        (None, None) => {
            return Err(problem(ProblemKind::Missing, format!("the input `{}` is not given", input.name)));
        }
    };
    let value = fit(&value, &input.ty)
        .map_err(|error| problem(ProblemKind::Invalid, format!("the input `{}`: {error}", input.name)))?;
    input.check_pattern(&value).map_err(|message| problem(ProblemKind::Invalid, message))?;
    Ok(value)
}

fn hint(input: &InputDecl) -> String {
    let mut hint = input.ty.to_string();
    if let Some(pattern) = &input.pattern {
        hint = format!("{hint} like {pattern}");
    }
    if input.description.is_empty() { hint } else { format!("{hint}: {}", input.description) }
}

/// Reads a text as the type wanted, where that is possible; `fit` refuses the rest.
fn read_text(value: &Value, ty: &Type) -> Value {
    let Value::String(text) = value else { return value.clone() };
    let parsed = match ty {
        Type::Integer => text.trim().parse::<i64>().ok().map(Value::from),
        Type::Number => text.trim().parse::<f64>().ok().map(Value::from),
        Type::Boolean => text.trim().parse::<bool>().ok().map(Value::from),
        Type::List(_) | Type::Map(_) | Type::Object(_) => serde_json::from_str(text).ok(),
        _ => None,
    };
    parsed.unwrap_or_else(|| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn input(name: &str, ty: Type, default: Option<Value>) -> InputDecl {
        InputDecl { name: name.into(), ty, pattern: None, default, description: String::new() }
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn texts_become_values_and_defaults_are_evaluated() {
        let declared = [
            input("n", Type::Integer, None),
            input("at", Type::Timestamp, Some(json!("{{ incident.started_at }}"))),
            input("label", Type::String, Some(json!("run-{{ inputs.n }}"))),
        ];
        let names = object(json!({"incident": {"started_at": "2026-11-21T04:12:00+01:00"}}));
        let bound = bind_inputs(&declared, &object(json!({"n": "5"})), &names).unwrap();
        assert_eq!(Value::Object(bound), json!({"n": 5, "at": "2026-11-21T03:12:00Z", "label": "run-5"}));
    }

    #[test]
    fn all_problems_are_found_at_once() {
        let mut tag = input("release", Type::String, None);
        tag.pattern = Some(r"v\d+(\.\d+)*".into());
        let declared = [
            tag,
            input("n", Type::Integer, None),
            input("at", Type::Timestamp, Some(json!("{{ incident.started_at }}"))),
        ];
        let given = object(json!({"release": "v1; rm", "relaese": "v1"}));
        let names = object(json!({"incident": {}}));
        let problems = bind_inputs(&declared, &given, &names).unwrap_err();
        let kinds: Vec<_> = problems.iter().map(|problem| (problem.input.as_str(), problem.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("relaese", ProblemKind::Unknown),
                ("release", ProblemKind::Invalid),
                ("n", ProblemKind::Missing),
                ("at", ProblemKind::Missing),
            ]
        );
        assert_eq!(problems[0].help.as_deref(), Some("did you mean `release`?"));
    }
}
