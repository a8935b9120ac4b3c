use serde_json::{Map, Value};

use super::evaluate::ExprError;
use super::fit::{fit, fit_object};
use super::script::render_script;
use super::template::{evaluate_text, has_template, render_text};
use crate::value::{Field, Type};

/// Evaluates all templates of a step's parameters and checks the result against their types.
///
/// Conditions and SQL stay as they are, values in scripts are shell-quoted, defaults are filled in, moments become
/// RFC 3339 in UTC and durations text with units. `names` holds `inputs`, `vars`, `steps`, `run`, `incident` and
/// `resources`.
pub fn render(with: &Value, fields: &[Field], names: &Map<String, Value>) -> Result<Value, ExprError> {
    let empty = Map::new();
    let with = match with {
        Value::Object(map) => map,
        Value::Null => &empty,
        _ => return Err(ExprError::new("the parameters are not a map")),
    };
    let evaluated = evaluate_object(with, fields, names)?;
    fit_object(&evaluated, fields).map(Value::Object)
}

/// Evaluates all templates of a value that nobody has given a type.
pub fn render_any(value: &Value, names: &Map<String, Value>) -> Result<Value, ExprError> {
    evaluate_value(value, &Type::Any, names)
}

fn evaluate_object(
    map: &Map<String, Value>,
    fields: &[Field],
    names: &Map<String, Value>,
) -> Result<Map<String, Value>, ExprError> {
    let entries = map.iter().map(|(key, value)| {
        let ty = fields.iter().find(|field| &field.name == key).map_or(&Type::Any, |field| &field.ty);
        let value = evaluate_value(value, ty, names).map_err(|error| error.within(key))?;
        Ok((key.clone(), value))
    });
    entries.collect()
}

fn evaluate_value(value: &Value, ty: &Type, names: &Map<String, Value>) -> Result<Value, ExprError> {
    match (value, ty) {
        (_, Type::Conditions(_) | Type::Sql) => Ok(value.clone()),
        (Value::String(text), Type::Script) => render_script(text, names).map(Value::String),
        (Value::Object(map), Type::EnvMap) => evaluate_environment(map, names),
        (Value::String(text), _) if has_template(text) => {
            // Defaults of nested values are filled in by `fit`, which sees the evaluated value.
            evaluate_text(text, names)
        }
        (Value::Array(items), _) => {
            let of = if let Type::List(of) = ty { of } else { &Type::Any };
            items
                .iter()
                .map(|item| evaluate_value(item, of, names))
                .collect::<Result<_, _>>()
                .map(Value::Array)
        }
        (Value::Object(map), Type::Object(fields)) => evaluate_object(map, fields, names).map(Value::Object),
        (Value::Object(map), _) => {
            let of = if let Type::Map(of) = ty { of } else { &Type::Any };
            let entries = map.iter().map(|(key, item)| Ok((key.clone(), evaluate_value(item, of, names)?)));
            entries.collect::<Result<Map<_, _>, ExprError>>().map(Value::Object)
        }
        _ => Ok(value.clone()),
    }
}

/// Environment variables are text; references to secrets and connections stay maps.
fn evaluate_environment(map: &Map<String, Value>, names: &Map<String, Value>) -> Result<Value, ExprError> {
    let mut result = Map::new();
    for (key, value) in map {
        let value = match value {
            Value::String(text) => {
                fit(&evaluate_text(text, names).map_err(|e| e.within(key))?, &Type::String)
                    .map_err(|error| error.within(key))?
            }
            Value::Object(parts) => {
                let parts = parts.iter().map(|(name, part)| match part {
                    Value::String(text) => Ok((name.clone(), Value::String(render_text(text, names)?))),
                    other => Ok((name.clone(), other.clone())),
                });
                Value::Object(parts.collect::<Result<_, ExprError>>().map_err(|error| error.within(key))?)
            }
            other => fit(other, &Type::String).map_err(|error| error.within(key))?,
        };
        result.insert(key.clone(), value);
    }
    Ok(Value::Object(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Map<String, Value> {
        json!({
            "inputs": {"at": "2026-11-21T04:12:00+01:00", "n": 3, "tag": "v1 '2"},
            "steps": {"choose": {"backup": {"label": "b1"}}},
        })
        .as_object()
        .unwrap()
        .clone()
    }

    fn fields() -> Vec<Field> {
        vec![
            Field::required("at", Type::Timestamp, ""),
            Field::optional("backup", Type::Object(vec![Field::required("label", Type::String, "")]), ""),
            Field::optional("script", Type::Script, ""),
            Field::optional("sql", Type::Sql, ""),
            Field::optional("expect", Type::conditions(&["rows"]), ""),
            Field::optional("env", Type::EnvMap, ""),
            Field::optional("n", Type::Integer, ""),
            Field::optional("list", Type::list(Type::String), ""),
            Field::defaulted("wait", Type::Duration, "30s", ""),
        ]
    }

    #[test]
    fn every_type_is_evaluated_by_its_own_rule() {
        let with = json!({
            "at": "{{ inputs.at }}",
            "backup": "{{ steps.choose.backup }}",
            "script": "git checkout {{ inputs.tag }}",
            "sql": "select '{{ inputs.n }}'",
            "expect": ["rows[0].n > {{"],
            "env": {"TAG": "{{ inputs.tag }}", "N": "{{ inputs.n }}", "DB": {"connection": "db", "database": "m{{ inputs.n }}"}, "P": 5},
            "n": "{{ inputs.n }}",
            "list": ["a{{ inputs.n }}", 4],
            "wait": "90s",
        });
        let result = render(&with, &fields(), &names()).unwrap();
        assert_eq!(
            result,
            json!({
                "at": "2026-11-21T03:12:00Z",
                "backup": {"label": "b1"},
                "script": "git checkout 'v1 '\\''2'",
                "sql": "select '{{ inputs.n }}'",
                "expect": ["rows[0].n > {{"],
                "env": {"TAG": "v1 '2", "N": "3", "DB": {"connection": "db", "database": "m3"}, "P": "5"},
                "n": 3,
                "list": ["a3", "4"],
                "wait": "1m 30s",
            })
        );
        let short = render(&json!({"at": "2026-11-21T03:12:00Z"}), &fields(), &names()).unwrap();
        assert_eq!(short["wait"], "30s");
    }

    #[test]
    fn what_does_not_fit_says_where() {
        for (with, expected) in [
            (json!({}), "`at` is missing"),
            (json!({"at": "{{ inputs.n }}"}), "`at`: 3 is not a timestamp"),
            (json!({"at": "{{ inputs.at }}", "n": "{{ inputs.tag }}"}), "`n`: \"v1 '2\" is not an integer"),
            (json!({"at": "{{ inputs.at }}", "x": 1}), "`x` is not known here"),
            (json!({"at": "{{ inputs.at }}", "wait": 60}), "`wait`: 60 has no unit: write for example `90s`"),
            (json!({"at": "{{ inputs.missing }}"}), "`at`: `inputs.missing` is undefined"),
        ] {
            assert_eq!(render(&with, &fields(), &names()).unwrap_err().message, expected);
        }
    }
}
