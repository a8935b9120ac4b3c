mod scalars;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::keys::{first_line, is_misspelt, unknown_key};
use crate::code::Code;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes, is_secret_key};
use crate::expr;
use crate::model::ids::is_plain_id;
use crate::resource::{Access, ResourceKind, made_by};
use crate::value::{Field, Span, Type};
use crate::yaml::{Doubt, Entry, Node, Resolved};

/// Something in a value that later checks must look at.
#[derive(Clone, Debug)]
pub struct Site {
    pub node: Node,
    pub kind: SiteKind,
}

/// What a [`Site`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum SiteKind {
    /// Text with `{{ … }}` in it.
    Template,
    /// A bare expression that may also read these names.
    Condition(Vec<String>),
    /// A bash script with `{{ … }}` in it.
    Script,
    /// The name of a resource.
    Resource { kinds: Vec<ResourceKind>, access: Access },
    /// The id of the step that makes a system, as in `{ from: STEP }`.
    Made { kinds: Vec<ResourceKind>, access: Access },
    /// The name of a secret.
    Secret,
}

/// Turns YAML into values of given types, and collects all problems.
#[derive(Debug)]
pub struct Reader<'a> {
    pub source: &'a Arc<Source>,
    pub out: &'a mut Diagnostics,
    /// Whether `{{ … }}` means anything here.
    pub templates: bool,
    /// What relative paths are relative to.
    pub base_dir: PathBuf,
    /// What was found for later checks.
    pub sites: Vec<Site>,
    pub(super) unknown: Code,
    missing: Code,
}

impl<'a> Reader<'a> {
    /// Makes a reader for a file whose values hold no templates.
    pub fn new(source: &'a Arc<Source>, out: &'a mut Diagnostics, base_dir: &Path) -> Self {
        Self {
            source,
            out,
            templates: false,
            base_dir: base_dir.to_owned(),
            sites: Vec::new(),
            unknown: codes::LB0104,
            missing: codes::LB0105,
        }
    }

    /// Makes a reader for the parameters of a step.
    pub fn for_params(source: &'a Arc<Source>, out: &'a mut Diagnostics, base_dir: &Path) -> Self {
        let reader = Self::new(source, out, base_dir);
        Self { templates: true, unknown: codes::LB0113, missing: codes::LB0114, ..reader }
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.out.push(diagnostic);
    }

    /// Reports a problem whose message says all there is to say.
    pub fn error(&mut self, code: Code, message: impl Into<String>, span: &Range<usize>) {
        self.push(Diagnostic::error(code, message).at(self.source, span.clone()));
    }

    fn help(&mut self, code: Code, message: impl Into<String>, span: &Range<usize>, help: &str) {
        self.push(Diagnostic::error(code, message).at(self.source, span.clone()).help(help));
    }

    /// Reads a value of a type; `None` if it is not one, which has been reported then.
    pub fn read(&mut self, node: &Node, ty: &Type) -> Option<Value> {
        match ty {
            Type::Conditions(names) => self.conditions(node, names),
            Type::EnvMap => self.environment(node),
            Type::Resource { kinds, access } => self.resource(node, kinds, *access),
            Type::Secret => self.secret(node),
            Type::Script => self.script(node),
            Type::Sql => self.sql(node),
            _ if self.is_template(node) => self.template(node, ty),
            Type::Any => self.any(node),
            Type::List(of) => self.list(node, of),
            Type::Map(of) => self.map(node, of),
            Type::Object(fields) => self.object(node, fields, "this map").map(Value::Object),
            _ => self.scalar_of(node, ty),
        }
    }

    /// Reads a map with these keys and no others.
    pub fn object(&mut self, node: &Node, fields: &[Field], what: &str) -> Option<Map<String, Value>> {
        let required = |field: &Field| field.required;
        let map = self.entries(node, fields, what, required)?;
        let known: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
        let entries = node.mapping().unwrap_or_default();
        for field in fields.iter().filter(|field| field.required && node.get(&field.name).is_none()) {
            if is_misspelt(entries, &field.name, &known) {
                continue;
            }
            let span = first_line(self, &node.span);
            let help = format!("`{}` is {}: {}", field.name, field.ty.in_words(), field.summary);
            self.help(self.missing, format!("{what} has no `{}`", field.name), &span, &help);
        }
        Some(map)
    }

    /// Reads a map with these keys and no others, of which none must be there.
    pub(crate) fn parts(&mut self, node: &Node, fields: &[Field], what: &str) -> Option<Map<String, Value>> {
        self.entries(node, fields, what, |_| false)
    }

    fn entries(
        &mut self,
        node: &Node,
        fields: &[Field],
        what: &str,
        required: impl Fn(&Field) -> bool,
    ) -> Option<Map<String, Value>> {
        let Some(entries) = node.mapping() else {
            self.wrong(node, "a map");
            return None;
        };
        let mut map = Map::new();
        for entry in entries {
            match fields.iter().find(|field| field.name == entry.key.text) {
                None => {
                    let known: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
                    unknown_key(self, entry, what, &known);
                }
                Some(field) if !required(field) && entry.value.is_null() => {}
                Some(field) => {
                    if let Some(value) = self.read(&entry.value, &field.ty) {
                        map.insert(field.name.clone(), value);
                    }
                }
            }
        }
        Some(map)
    }

    /// Reads text.
    pub(super) fn text(&mut self, node: &Node) -> Option<String> {
        match self.read(node, &Type::String)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn duration(&mut self, node: &Node) -> Option<Span> {
        let value = self.read(node, &Type::Duration)?;
        value.as_str().and_then(|text| Span::parse(text).ok())
    }

    fn is_template(&self, node: &Node) -> bool {
        self.templates && node.text().is_some_and(expr::has_template)
    }

    fn template(&mut self, node: &Node, ty: &Type) -> Option<Value> {
        let text = node.text()?;
        let whole = text.trim_start().starts_with("{{") && text.trim_end().ends_with("}}");
        let textual = matches!(
            ty,
            Type::Any | Type::String | Type::Path | Type::Duration | Type::Timestamp | Type::Choice(_)
        );
        if !whole && !textual {
            let message = format!("text with a template in it is not {}", ty.in_words());
            self.help(
                codes::LB0106,
                message,
                &node.span,
                "write exactly one `{{ expression }}`, which keeps its type",
            );
            return None;
        }
        self.sites.push(Site { node: node.clone(), kind: SiteKind::Template });
        Some(Value::String(text.to_owned()))
    }

    /// Reads one bare expression.
    pub(super) fn condition(&mut self, node: &Node, names: &[String]) -> Option<String> {
        let Some(scalar) = node.scalar().filter(|_| !node.is_null()) else {
            self.wrong(node, "an expression");
            return None;
        };
        let text = scalar.text.trim();
        if expr::has_template(text) {
            let mut diagnostic =
                Diagnostic::error(codes::LB0118, "this is an expression already: no braces around it")
                    .at(self.source, node.span.clone())
                    .help("write the bare expression");
            if let Some(bare) = without_braces(text) {
                diagnostic = diagnostic.fix(node.span.clone(), quote_if_needed(&bare));
            }
            self.push(diagnostic);
            return None;
        }
        self.sites.push(Site { node: node.clone(), kind: SiteKind::Condition(names.to_vec()) });
        Some(text.to_owned())
    }

    fn conditions(&mut self, node: &Node, names: &[String]) -> Option<Value> {
        let Some(nodes) = node.sequence() else {
            let found = node.describe();
            let mut diagnostic =
                Diagnostic::error(codes::LB0106, format!("expected a list of expressions, found {found}"))
                    .at(self.source, node.span.clone())
                    .help("write a list, also for one expression");
            if let Some(text) = node.text().filter(|text| !text.contains('\n') && !node.is_null()) {
                diagnostic = diagnostic.fix(node.span.clone(), format!("[{}]", quote_if_needed(text)));
            }
            self.push(diagnostic);
            return None;
        };
        let texts: Vec<_> =
            nodes.iter().filter_map(|node| self.condition(node, names)).map(Value::String).collect();
        Some(Value::Array(texts))
    }

    fn script(&mut self, node: &Node) -> Option<Value> {
        let text = self.plain_text(node, "a bash script")?;
        if self.templates && text.contains("{{") {
            self.sites.push(Site { node: node.clone(), kind: SiteKind::Script });
        }
        Some(Value::String(text))
    }

    fn sql(&mut self, node: &Node) -> Option<Value> {
        let text = self.plain_text(node, "SQL")?;
        if expr::has_template(&text) {
            let at = text.find("{{").or_else(|| text.find("{%")).unwrap_or(0);
            let end = text[at..].find("}}").map_or(text.len(), |end| at + end + 2);
            let span = node.locate(&self.source.text, at..end);
            let help = "write `$1` here and give the value under `params:`";
            self.help(codes::LB0128, "SQL takes no templates", &span, help);
        }
        Some(Value::String(text))
    }

    fn plain_text(&mut self, node: &Node, what: &str) -> Option<String> {
        let found = node.text().filter(|_| !node.is_null()).map(ToOwned::to_owned);
        if found.is_none() {
            self.wrong(node, what);
        }
        found
    }

    fn resource(&mut self, node: &Node, kinds: &[ResourceKind], access: Access) -> Option<Value> {
        if node.mapping().is_some() {
            return self.made(node, kinds, access);
        }
        let name = self.plain_text(node, "the name of a resource")?;
        if expr::has_template(&name) && expr::input_name(&name).is_none() {
            let help = "write the name out; environments give the same name to their own systems";
            self.help(codes::LB0106, "the name of a resource cannot be computed", &node.span, help);
            return None;
        }
        self.sites
            .push(Site { node: node.clone(), kind: SiteKind::Resource { kinds: kinds.to_vec(), access } });
        Some(Value::String(name))
    }

    /// Reads `{ from: STEP }`.
    fn made(&mut self, node: &Node, kinds: &[ResourceKind], access: Access) -> Option<Value> {
        if !self.templates {
            let help = "name a resource of this file; only the steps of a runbook make systems";
            self.help(codes::LB0160, "here is no step that could make a system", &node.span, help);
            return None;
        }
        let fields = [Field::required("from", Type::String, "the step that makes the system")];
        let map = self.object(node, &fields, "a system that a step makes")?;
        let step = map.get("from").and_then(Value::as_str)?;
        let named = node.get("from")?;
        if !is_plain_id(step) {
            let help = "write the id of one step: `{ from: clone }`";
            self.help(codes::LB0160, format!("`{step}` is not the id of a step"), &named.span, help);
            return None;
        }
        self.sites.retain(|site| site.node.span != named.span);
        self.sites.push(Site { node: named.clone(), kind: SiteKind::Made { kinds: kinds.to_vec(), access } });
        Some(Value::String(made_by(step)))
    }

    fn environment(&mut self, node: &Node) -> Option<Value> {
        let Some(entries) = node.mapping() else {
            self.wrong(node, "a map of environment variables");
            return None;
        };
        let mut map = Map::new();
        for entry in entries {
            if let Some(value) = self.variable(entry) {
                map.insert(entry.key.text.clone(), value);
            }
        }
        Some(Value::Object(map))
    }

    fn variable(&mut self, entry: &Entry) -> Option<Value> {
        let name = &entry.key.text;
        if name.is_empty() || name.contains(['=', '\0']) || name.starts_with(|c: char| c.is_ascii_digit()) {
            let help = "letters, digits and `_`, not beginning with a digit, as in `DATABASE_URL`";
            let message = format!("`{name}` cannot be the name of a variable");
            self.help(codes::LB0110, message, &entry.key.span, help);
        }
        let node = &entry.value;
        if node.mapping().is_none() {
            return self.read(node, &Type::String);
        }
        if let Some(secret) = node.get("secret") {
            let fields = [Field::required("secret", Type::String, "name of a secret")];
            let map = self.object(node, &fields, "a secret variable")?;
            self.sites.push(Site { node: secret.clone(), kind: SiteKind::Secret });
            return Some(Value::Object(map));
        }
        let kinds = match node.get("database") {
            Some(_) => vec![ResourceKind::Postgres, ResourceKind::Mariadb, ResourceKind::Redis],
            None => {
                vec![
                    ResourceKind::Postgres,
                    ResourceKind::Mariadb,
                    ResourceKind::Redis,
                    ResourceKind::Http,
                    ResourceKind::Files,
                ]
            }
        };
        let fields = [
            Field::required(
                "connection",
                Type::Resource { kinds, access: Access::Read },
                "the system to connect to",
            ),
            Field::optional("database", Type::String, "the database to connect to"),
        ];
        self.object(node, &fields, "a variable").map(Value::Object)
    }

    fn secret(&mut self, node: &Node) -> Option<Value> {
        let help = "write `{ file: /path }`, `{ env: NAME }` or `{ command: [program, argument] }`";
        let Some(entries) = node.mapping() else {
            self.help(codes::LB0208, "a secret stands elsewhere; here stands where", &node.span, help);
            return None;
        };
        let fields = [
            Field::optional("file", Type::Path, "a file that holds nothing else"),
            Field::optional("env", Type::String, "a variable of the environment"),
            Field::optional("command", Type::list(Type::String), "a program that prints it"),
        ];
        let map = self.object(node, &fields, "a reference to a secret")?;
        if entries.len() != 1 || map.len() != 1 {
            self.help(codes::LB0106, "a reference to a secret has exactly one key", &node.span, help);
            return None;
        }
        Some(Value::Object(map))
    }

    fn list(&mut self, node: &Node, of: &Type) -> Option<Value> {
        let Some(nodes) = node.sequence() else {
            self.wrong(node, &format!("a list of {of}"));
            return None;
        };
        let values: Vec<_> = nodes.iter().filter_map(|node| self.read(node, of)).collect();
        (values.len() == nodes.len()).then_some(Value::Array(values))
    }

    fn map(&mut self, node: &Node, of: &Type) -> Option<Value> {
        let Some(entries) = node.mapping() else {
            self.wrong(node, "a map");
            return None;
        };
        let read =
            entries.iter().filter_map(|entry| Some((entry.key.text.clone(), self.read(&entry.value, of)?)));
        Some(Value::Object(read.collect()))
    }

    /// Reads a value that says itself what it is.
    fn any(&mut self, node: &Node) -> Option<Value> {
        if node.sequence().is_some() {
            return self.list(node, &Type::Any);
        }
        if node.mapping().is_some() {
            return self.map(node, &Type::Any);
        }
        let scalar = node.scalar()?;
        Some(match scalar.resolve() {
            Resolved::Null => Value::Null,
            Resolved::Boolean(value) => value.into(),
            Resolved::Integer(value) => value.into(),
            Resolved::Float(value) => value.into(),
            Resolved::String => {
                self.doubt(node, scalar);
                scalar.text.clone().into()
            }
        })
    }

    /// Reports a value of the wrong type; what is doubtful gets the more exact message.
    pub(super) fn wrong(&mut self, node: &Node, wanted: &str) {
        let mut diagnostic =
            Diagnostic::error(codes::LB0106, format!("expected {wanted}, found {}", node.describe()))
                .at(self.source, node.span.clone());
        match node.scalar().and_then(|scalar| scalar.doubt().map(|doubt| (doubt, scalar))) {
            Some((Doubt::OldBoolean(truth), scalar)) if wanted == "a boolean" => {
                diagnostic.code = codes::LB0107;
                diagnostic.message = format!("`{}` is text; a boolean is `true` or `false`", scalar.text);
                diagnostic = diagnostic.help("write it so that every program reads it alike");
                diagnostic = diagnostic.fix(node.span.clone(), truth.to_string());
            }
            Some((Doubt::LeadingZero, scalar)) if wanted != "a boolean" => {
                diagnostic.code = codes::LB0107;
                diagnostic.message = format!("`{}` begins with a zero: octal or decimal?", scalar.text);
                diagnostic =
                    diagnostic.help("write a decimal number without the zero, or `0o…` for an octal one");
            }
            _ if is_huge(node) && matches!(wanted, "an integer" | "a number") => {
                diagnostic.message = "no integer here is that large".to_owned();
                diagnostic = diagnostic.help(
                    "integers go up to 9223372036854775807; put longer ones into quotes where text is wanted",
                );
            }
            _ => diagnostic = self.help_with_type(diagnostic, node, wanted),
        }
        self.push(diagnostic);
    }

    /// Says how a value of the type that is wanted is written.
    fn help_with_type(&self, diagnostic: Diagnostic, node: &Node, wanted: &str) -> Diagnostic {
        let quoted = node.scalar().filter(|scalar| !scalar.plain).map(|scalar| scalar.text.trim());
        let unquoted = quoted.filter(|text| match wanted {
            "an integer" => text.parse::<i64>().is_ok(),
            "a number" => text.parse::<f64>().is_ok(),
            "a boolean" => matches!(*text, "true" | "false"),
            _ => false,
        });
        if let Some(text) = unquoted {
            return diagnostic.help("in quotes it is text; remove them").fix(node.span.clone(), text);
        }
        if node.is_null() {
            return diagnostic.help("write the value after the key, or remove the key");
        }
        let help = match wanted {
            "a boolean" => "write `true` or `false`",
            "an integer" => "write a whole number without quotes, such as `3`",
            "a number" => "write a number without quotes, such as `0.5`",
            "text" | "a path" if node.scalar().is_none() => {
                "write one text; put it into quotes if it has brackets, braces or `: ` in it"
            }
            "an expression" => "write one bare expression: `vars.site == 'x'`",
            "a bash script" | "SQL" => {
                "write it as one text; of several lines with `|`, each line indented below it"
            }
            "a list of steps" => "begin each step with `- `: `- { id: look, effect: read, run: uptime }`",
            _ if wanted.starts_with("a list") => "write `[one, two]`, or each element on a line with `- `",
            "a map of environment variables" => "write `env: { NAME: value }`",
            _ if wanted.starts_with("a map") => "write `{ key: value }`, or each `key: value` on a line",
            _ => return diagnostic,
        };
        diagnostic.help(help)
    }

    /// Warns where a value looks like a secret that stands in the open.
    pub(super) fn warn_of_secrets(&mut self, node: &Node) {
        for entry in node.mapping().unwrap_or_default() {
            let text = entry.value.scalar().filter(|scalar| scalar.resolve() == Resolved::String);
            if is_secret_key(&entry.key.text) && text.is_some() {
                self.push(
                    Diagnostic::warning(
                        codes::LB0208,
                        format!("`{}` looks like a secret in the open", entry.key.text),
                    )
                    .at(self.source, entry.key.span.clone())
                    .help("move it to `secrets:` as a reference, and change it if it has been in Git"),
                );
            }
            self.warn_of_secrets(&entry.value);
        }
    }
}

/// Says whether a value is written as a number that no integer holds.
fn is_huge(node: &Node) -> bool {
    let digits =
        node.scalar().filter(|scalar| scalar.plain).map(|scalar| scalar.text.trim_start_matches(['-', '+']));
    digits.is_some_and(|digits| digits.len() > 18 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns an expression without the braces in it; `None` where they may be meant as text.
fn without_braces(text: &str) -> Option<String> {
    let quoted = ["'{{", "\"{{", "}}'", "}}\"", "{%"].iter().any(|part| text.contains(part));
    if quoted || text.matches("{{").count() != text.matches("}}").count() {
        return None;
    }
    let mut bare = String::new();
    for (at, part) in text.split("{{").enumerate() {
        match part.split_once("}}") {
            Some((inner, after)) if at > 0 => bare.extend([inner.trim(), after]),
            _ => bare.push_str(part),
        }
    }
    Some(bare.trim().to_owned())
}

fn quote_if_needed(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.contains([':', '#', ',', '{', '[', ']', '}']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"")) }
}

/// Resolves `.` and `..` by their letters: the path may not exist yet.
pub(super) fn normal(path: &Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut result, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir if result.file_name().is_some() => {
                result.pop();
            }
            part => result.push(part),
        }
        result
    })
}
