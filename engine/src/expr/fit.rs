use serde_json::{Map, Value};

use super::evaluate::{ExprError, brief};
use crate::value::{Field, Span, Type, parse_timestamp};

/// Checks a value against a type and brings it to its one form: moments in UTC, durations with units, defaults
/// filled in. Expressions, scripts and SQL stay as they are.
pub fn fit(value: &Value, ty: &Type) -> Result<Value, ExprError> {
    let wrong = || ExprError::new(format!("{} is not {}", brief(value), ty.in_words()));
    match ty {
        Type::Any | Type::Conditions(_) | Type::EnvMap | Type::Secret => Ok(value.clone()),
        Type::String | Type::Path | Type::Sql | Type::Script => text(value).ok_or_else(wrong),
        Type::Resource { .. } => value.as_str().map(Value::from).ok_or_else(wrong),
        Type::Integer => value.as_i64().map(Value::from).ok_or_else(wrong),
        Type::Number => value.as_f64().map(|_| value.clone()).ok_or_else(wrong),
        Type::Boolean => value.as_bool().map(Value::from).ok_or_else(wrong),
        Type::Choice(words) => match value.as_str() {
            Some(word) if words.iter().any(|known| known == word) => Ok(value.clone()),
            _ => Err(wrong()),
        },
        Type::Duration => match value.as_str().map(Span::parse) {
            Some(Ok(span)) => Ok(Value::String(span.to_string())),
            Some(Err(error)) => Err(ExprError::new(error.to_string())),
            None => Err(ExprError::new(format!("{} has no unit: write for example `90s`", brief(value)))),
        },
        Type::Timestamp => match value.as_str().map(parse_timestamp) {
            Some(Ok(moment)) => Ok(Value::String(moment.to_string())),
            Some(Err(message)) => Err(ExprError::new(message)),
            None => Err(wrong()),
        },
        Type::List(of) => {
            let items = value.as_array().ok_or_else(wrong)?.iter().enumerate();
            let fitted =
                items.map(|(at, item)| fit(item, of).map_err(|error| error.within(&format!("[{at}]"))));
            fitted.collect::<Result<_, _>>().map(Value::Array)
        }
        Type::Map(of) => {
            let entries = value.as_object().ok_or_else(wrong)?.iter();
            let fitted = entries
                .map(|(key, item)| Ok((key.clone(), fit(item, of).map_err(|error| error.within(key))?)));
            fitted.collect::<Result<Map<_, _>, _>>().map(Value::Object)
        }
        Type::Object(fields) => fit_object(value.as_object().ok_or_else(wrong)?, fields).map(Value::Object),
    }
}

/// Checks a map against its fields. A null stands for a value that was left out.
pub(super) fn fit_object(
    map: &Map<String, Value>,
    fields: &[Field],
) -> Result<Map<String, Value>, ExprError> {
    if let Some(unknown) = map.keys().find(|key| fields.iter().all(|field| &field.name != *key)) {
        return Err(ExprError::new(format!("`{unknown}` is not known here")));
    }
    let mut fitted = Map::new();
    for field in fields {
        match map.get(&field.name).filter(|value| !value.is_null()) {
            Some(value) => {
                let value = fit(value, &field.ty).map_err(|error| error.within(&field.name))?;
                fitted.insert(field.name.clone(), value);
            }
            None if field.required => {
                return Err(ExprError::new(format!("`{}` is missing", field.name)));
            }
            None => {
                if let Some(default) = &field.default {
                    fitted.insert(field.name.clone(), default.clone());
                }
            }
        }
    }
    Ok(fitted)
}

fn text(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) => Some(value.clone()),
        Value::Number(number) => Some(Value::String(number.to_string())),
        Value::Bool(truth) => Some(Value::String(truth.to_string())),
        _ => None,
    }
}
