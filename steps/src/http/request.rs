//! A request as a runbook writes it, and how captured values and secrets get into it.

use std::collections::BTreeMap;

use lifeboat_engine::step::{StepContext, StepError};
use lifeboat_engine::value::{Field, Type};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{Capture, NAMES};
use super::codes;

/// One request with what is expected of its answer.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Written {
    #[serde(default)]
    pub(super) name: String,
    get: Option<String>,
    post: Option<String>,
    put: Option<String>,
    patch: Option<String>,
    delete: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    json: Option<Value>,
    form: Option<BTreeMap<String, Value>>,
    body: Option<String>,
    pub(super) follow: Option<bool>,
    #[serde(default)]
    pub(super) capture: BTreeMap<String, Capture>,
    #[serde(default)]
    pub(super) expect: Vec<String>,
}

/// A request ready to be sent. Its text may hold secrets.
pub(super) struct Ready {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<(&'static str, String)>,
}

/// Describes the keys of a request.
pub(super) fn fields() -> Vec<Field> {
    let path =
        |method: &str| Field::optional(method, Type::String, "The path to ask for, from the first `/`.");
    let mut fields: Vec<Field> = ["get", "post", "put", "patch", "delete"].map(path).into();
    fields.extend([
        Field::optional("headers", Type::map(Type::Any), "Headers: text, or `{ secret: NAME }`."),
        Field::optional("json", Type::Any, "A JSON body; `{ secret: NAME }` in it stands for a secret."),
        Field::optional("form", Type::map(Type::Any), "A form as a browser sends it."),
        Field::optional("body", Type::String, "A body as it is."),
        Field::optional("follow", Type::Boolean, "Whether redirects on the same host are followed; yes if absent."),
        Field::optional(
            "capture",
            Type::map(Type::Any),
            "Values for later checks, by name: an expression such as `json.token`, or `{ after: TEXT, before: TEXT }`.",
        ),
        Field::optional("expect", Type::conditions(&NAMES), "Conditions over the answer."),
    ]);
    fields
}

impl Written {
    /// Returns a plain GET.
    pub(super) fn get(path: &str, expect: Vec<String>) -> Self {
        Self { name: format!("GET {path}"), get: Some(path.to_owned()), expect, ..Self::default() }
    }

    /// Says what is wrong with it regardless of any value.
    pub(super) fn problem(&self) -> Option<String> {
        let methods = [&self.get, &self.post, &self.put, &self.patch, &self.delete];
        let paths: Vec<&String> = methods.into_iter().flatten().collect();
        let bodies = [self.json.is_some(), self.form.is_some(), self.body.is_some()];
        let name = &self.name;
        match paths.as_slice() {
            [path] if !path.starts_with('/') || path.starts_with("//") => {
                Some(format!("the path `{path}` of the check `{name}` does not begin with one `/`"))
            }
            [_] if bodies.iter().filter(|given| **given).count() > 1 => {
                Some(format!("the check `{name}` has more than one of `json`, `form` and `body`"))
            }
            [_] => None,
            _ => Some(format!("the check `{name}` needs exactly one of get, post, put, patch and delete")),
        }
    }

    /// Puts captured values and secrets in.
    pub(super) fn ready(&self, ctx: &StepContext, captured: &Map<String, Value>) -> Result<Ready, StepError> {
        if let Some(problem) = self.problem() {
            return Err(cannot_form(&problem));
        }
        let (method, path) = self.method();
        let fill = Fill { ctx, captured, check: &self.name };
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            headers.push((name.clone(), fill.text(value)?));
        }
        let body = if let Some(value) = &self.json {
            Some(("application/json", fill.value(value)?.to_string()))
        } else if let Some(form) = &self.form {
            let pairs = form
                .iter()
                .map(|(name, value)| Ok(format!("{}={}", encode(name), encode(&fill.text(value)?))));
            let pairs = pairs.collect::<Result<Vec<_>, StepError>>()?;
            Some(("application/x-www-form-urlencoded", pairs.join("&")))
        } else if let Some(body) = &self.body {
            Some(("text/plain; charset=utf-8", fill.string(body, |text| text.to_owned())?))
        } else {
            None
        };
        Ok(Ready { method, path: fill.string(path, encode)?, headers, body })
    }

    fn method(&self) -> (Method, &str) {
        let all = [
            (Method::GET, &self.get),
            (Method::POST, &self.post),
            (Method::PUT, &self.put),
            (Method::PATCH, &self.patch),
            (Method::DELETE, &self.delete),
        ];
        let found = all.into_iter().find_map(|(method, path)| Some((method, path.as_deref()?)));
        found.unwrap_or((Method::GET, "/"))
    }

    /// Returns method and path as written, for people.
    pub(super) fn describe(&self) -> String {
        let (method, path) = self.method();
        format!("{method} {path}")
    }
}

struct Fill<'a> {
    ctx: &'a StepContext,
    captured: &'a Map<String, Value>,
    check: &'a str,
}

impl Fill<'_> {
    /// Fills a JSON value; a text that is one `${name}` takes the type of what was captured.
    fn value(&self, value: &Value) -> Result<Value, StepError> {
        match value {
            Value::String(text) => {
                let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
                match whole.filter(|name| !name.contains("${")) {
                    Some(name) => self.captured(name).cloned(),
                    None => self.string(text, |text| text.to_owned()).map(Value::String),
                }
            }
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(map) => match secret_name(map) {
                Some(name) => self.secret(name).map(Value::String),
                None => {
                    let pairs = map.iter().map(|(key, value)| Ok((key.clone(), self.value(value)?)));
                    pairs.collect::<Result<Map<_, _>, StepError>>().map(Value::Object)
                }
            },
            other => Ok(other.clone()),
        }
    }

    fn text(&self, value: &Value) -> Result<String, StepError> {
        Ok(match self.value(value)? {
            Value::String(text) => text,
            other => other.to_string(),
        })
    }

    fn string(&self, text: &str, escape: impl Fn(&str) -> String) -> Result<String, StepError> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let (name, after) = after.split_once('}').ok_or_else(|| {
                cannot_form(&format!("`${{` in the check `{}` is not closed with `}}`", self.check))
            })?;
            let value = match self.captured(name)? {
                Value::String(text) => escape(text),
                other => escape(&other.to_string()),
            };
            filled.push_str(&value);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn captured(&self, name: &str) -> Result<&Value, StepError> {
        self.captured.get(name).ok_or_else(|| {
            let problem =
                format!("the check `{}` uses `${{{name}}}`, which no earlier check captured", self.check);
            cannot_form(&problem)
        })
    }

    fn secret(&self, name: &str) -> Result<String, StepError> {
        let reference = self.ctx.named_secret(name).ok_or_else(|| {
            cannot_form(&format!(
                "the check `{}` uses the secret `{name}`, which the environment does not have",
                self.check
            ))
        })?;
        Ok(self.ctx.secret(reference)?.expose_secret().to_owned())
    }
}

fn secret_name(map: &Map<String, Value>) -> Option<&str> {
    if map.len() == 1 { map.get("secret")?.as_str() } else { None }
}

/// Percent-encodes all but what no part of a URL gives a meaning.
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

fn cannot_form(problem: &str) -> StepError {
    StepError::permanent(codes::LB1603, problem).help("correct the check in the runbook")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(written: Value) -> Option<String> {
        serde_json::from_value::<Written>(written).expect("the right types").problem()
    }

    #[test]
    fn a_request_has_one_method_and_one_body() {
        assert_eq!(problem(json!({ "name": "a", "get": "/x" })), None);
        assert!(problem(json!({ "name": "a" })).is_some());
        assert!(problem(json!({ "name": "a", "get": "/x", "post": "/y" })).is_some());
        assert!(problem(json!({ "name": "a", "post": "/x", "json": {}, "body": "x" })).is_some());
        for elsewhere in ["//other.example/x", "http://other.example/", "x"] {
            assert!(problem(json!({ "name": "a", "get": elsewhere })).is_some(), "{elsewhere}");
        }
    }

    #[test]
    fn text_is_encoded_for_forms_and_paths() {
        assert_eq!(encode("a b&c=ä/"), "a%20b%26c%3D%C3%A4%2F");
    }
}
