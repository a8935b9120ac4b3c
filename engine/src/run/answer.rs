use serde_json::{Map, Value};

use crate::expr::{InputDecl, bind_input};
use crate::model::event::Question;

/// Returns what the answer to a question must be, if it is not one of its choices.
pub fn wanted(question: &Question) -> Option<InputDecl> {
    question.typed.as_ref().and_then(|typed| serde_json::from_value(typed.clone()).ok())
}

/// Says why a text cannot be the answer to a question.
pub fn check_answer(question: &Question, text: &str) -> Result<(), String> {
    match wanted(question) {
        Some(wanted) => bind_input(&wanted, Some(&Value::String(text.to_owned())), &Map::new())
            .map(drop)
            .map_err(|problem| problem.message),
        None if question.choices.iter().any(|choice| choice == text) => Ok(()),
        None => Err(format!("`{text}` is not one of {}", question.choices.join(", "))),
    }
}

/// Returns what settings answer in nobody's name: the first choice, or the value that the step gives for that.
pub(super) fn automatic(question: &Question) -> Option<String> {
    match (wanted(question), question.typed.is_some()) {
        (Some(InputDecl { default: Some(Value::String(text)), .. }), _) => Some(text),
        (Some(InputDecl { default: Some(value), .. }), _) => Some(value.to_string()),
        (None, false) => question.choices.first().cloned(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::value::Type;

    fn question(default: Option<Value>) -> Question {
        let declared = InputDecl {
            name: "value".into(),
            ty: Type::Integer,
            pattern: None,
            default,
            description: String::new(),
        };
        let typed = Some(serde_json::to_value(declared).unwrap());
        Question {
            id: "ask".into(),
            role: None,
            message: "How many?".into(),
            choices: vec![],
            typed,
            rule: None,
            points: vec![],
        }
    }

    #[test]
    fn an_answer_must_have_the_type() {
        assert_eq!(check_answer(&question(None), "12"), Ok(()));
        assert!(check_answer(&question(None), "a dozen").unwrap_err().contains("an integer"));
        let choices = vec!["approve".to_owned(), "reject".to_owned()];
        let approval = Question { choices, typed: None, ..question(None) };
        assert_eq!(check_answer(&approval, "reject"), Ok(()));
        assert!(check_answer(&approval, "maybe").unwrap_err().contains("approve, reject"));
    }

    #[test]
    fn settings_answer_only_with_what_they_are_given() {
        assert_eq!(automatic(&question(None)), None);
        assert_eq!(automatic(&question(Some(json!(7)))).as_deref(), Some("7"));
    }
}
