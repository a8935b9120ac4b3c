//! Single values: how a text in a file becomes a value of the type that is wanted.

use serde_json::Value;

use super::{Reader, normal};
use crate::diagnostic::{Diagnostic, codes};
use crate::value::{Span, SpanError, Type, parse_timestamp};
use crate::yaml::{Doubt, Node, Resolved, Scalar};

impl Reader<'_> {
    pub(super) fn scalar_of(&mut self, node: &Node, ty: &Type) -> Option<Value> {
        let Some(scalar) = node.scalar() else {
            self.wrong(node, &ty.in_words());
            return None;
        };
        match (ty, scalar.resolve()) {
            (Type::String | Type::Path, Resolved::Null) => {
                self.wrong(node, &ty.in_words());
                None
            }
            (Type::String, _) => {
                self.doubt(node, scalar);
                Some(scalar.text.clone().into())
            }
            (Type::Path, _) => self.path(node, &scalar.text),
            (Type::Integer, Resolved::Integer(value)) => Some(value.into()),
            (Type::Number, Resolved::Integer(value)) => Some(value.into()),
            (Type::Number, Resolved::Float(value)) => Some(value.into()),
            (Type::Boolean, Resolved::Boolean(value)) => Some(value.into()),
            (Type::Duration, resolved) => self.read_duration(node, scalar, resolved),
            (Type::Timestamp, _) => self.read_timestamp(node, scalar),
            (Type::Choice(words), _) => self.choice(node, &scalar.text, words),
            _ => {
                self.wrong(node, &ty.in_words());
                None
            }
        }
    }

    fn path(&mut self, node: &Node, text: &str) -> Option<Value> {
        if text.starts_with('~') {
            let help = "write the whole path; only a shell knows what `~` is";
            self.help(codes::LB0106, "`~` means nothing in a path here", &node.span, help);
            return None;
        }
        Some(normal(&self.base_dir.join(text)).to_string_lossy().into_owned().into())
    }

    fn read_duration(&mut self, node: &Node, scalar: &Scalar, resolved: Resolved) -> Option<Value> {
        if let (true, Some(Doubt::Sexagesimal)) = (scalar.plain, scalar.doubt()) {
            let help = "write the units: `12m 30s`";
            self.help(codes::LB0108, format!("`{}` is not a duration", scalar.text), &node.span, help);
            return None;
        }
        if resolved == Resolved::Null {
            self.wrong(node, "a duration");
            return None;
        }
        match Span::parse(&scalar.text) {
            Ok(span) => Some(span.to_string().into()),
            Err(error) => {
                let (message, help) = match &error {
                    SpanError::NoUnit(number) => (
                        format!("`{number}` has no unit"),
                        format!(
                            "write the unit: `{number}s`, or `{number}m` or `{number}h` if that is meant"
                        ),
                    ),
                    SpanError::Calendar(text) => (
                        format!("`{text}` uses months or years, whose length varies"),
                        "write weeks (`w`) or days (`d`); minutes are a small `m`".to_owned(),
                    ),
                    SpanError::Invalid(text) => (
                        format!("`{text}` is not a duration"),
                        "write numbers with units: `90s`, `15m`, `1h 30m`, `2d`".to_owned(),
                    ),
                };
                let mut diagnostic =
                    Diagnostic::error(codes::LB0108, message).at(self.source, node.span.clone()).help(help);
                if let SpanError::NoUnit(number) = error {
                    diagnostic = diagnostic.fix(node.span.clone(), format!("{number}s"));
                }
                self.push(diagnostic);
                None
            }
        }
    }

    fn read_timestamp(&mut self, node: &Node, scalar: &Scalar) -> Option<Value> {
        match parse_timestamp(&scalar.text) {
            Ok(moment) => Some(moment.to_string().into()),
            Err(_) => {
                let message = format!("`{}` is not a moment", scalar.text.trim());
                let help =
                    "write date, time and zone: `2026-11-21T03:12:00Z`, or `2026-11-21T04:12:00+01:00`";
                self.help(codes::LB0109, message, &node.span, help);
                None
            }
        }
    }

    fn choice(&mut self, node: &Node, text: &str, words: &[String]) -> Option<Value> {
        if words.iter().any(|word| word == text) {
            return Some(text.into());
        }
        let diagnostic =
            Diagnostic::error(codes::LB0106, format!("`{text}` is not one of {}", words.join(", ")))
                .at(self.source, node.span.clone())
                .suggest(text, "write one of", words.iter().map(String::as_str));
        self.push(diagnostic);
        None
    }

    /// Warns about words that other YAML programs read as something else.
    pub(super) fn doubt(&mut self, node: &Node, scalar: &Scalar) {
        let reading = match scalar.doubt() {
            Some(Doubt::OldBoolean(truth)) => format!("`{truth}`"),
            Some(Doubt::LeadingZero) => "an octal number".to_owned(),
            _ => return,
        };
        let quoted = format!("\"{}\"", scalar.text);
        self.push(
            Diagnostic::warning(
                codes::LB0107,
                format!("some programs read `{}` as {reading}; here it is text", scalar.text),
            )
            .at(self.source, node.span.clone())
            .help("put quotes around it")
            .fix(node.span.clone(), quoted),
        );
    }
}
