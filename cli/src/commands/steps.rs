//! `lifeboat steps`: the step kinds and their contracts.

use std::fmt::Write;

use lifeboat_engine::resource::Access;
use lifeboat_engine::step::{KindSpec, Registry};
use lifeboat_engine::value::{Field, Type};

use crate::args::Format;
use crate::exit::{Exit, Failure, Outcome};

/// Lists all kinds, or explains one.
pub(crate) fn steps(registry: &Registry, kind: Option<&str>, format: Format) -> Outcome {
    let text = match (kind, format) {
        (None, Format::Json) => json(&registry.specs().collect::<Vec<_>>())?,
        (Some(name), Format::Json) => json(find(registry, name)?)?,
        (None, _) => list(registry),
        (Some(name), _) => page(find(registry, name)?),
    };
    crate::say::putln!("{}", text.trim_end());
    Ok(Exit::Success)
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::internal("a description").caused_by(&error))
}

fn find<'a>(registry: &'a Registry, name: &str) -> Result<&'a KindSpec, Failure> {
    registry.spec(name).ok_or_else(|| {
        let names = registry.specs().map(|spec| spec.name.as_str());
        let failure = Failure::usage(format!("there is no step kind `{name}`"));
        match lifeboat_engine::diagnostic::nearest(name, names) {
            Some(near) => failure.help(format!("did you mean `{near}`? `lifeboat steps` lists all")),
            None => failure.help("`lifeboat steps` lists all kinds"),
        }
    })
}

fn list(registry: &Registry) -> String {
    let width = registry.specs().map(|spec| spec.name.len()).max().unwrap_or(0);
    registry.specs().fold(String::new(), |mut text, spec| {
        let _ = writeln!(text, "{:width$}  {}", spec.name, spec.summary);
        text
    })
}

/// One kind as a page of Markdown; the reference in `docs/steps.md` is made of these.
pub(crate) fn page(spec: &KindSpec) -> String {
    let mut text = format!("## {}\n\n{}\n\n{}\n", spec.name, spec.summary, facts(spec));
    if !spec.doc.trim().is_empty() {
        let _ = write!(text, "\n{}\n", spec.doc.trim());
    }
    section(&mut text, "Parameters", &spec.params);
    section(&mut text, "Outputs", &spec.outputs);
    text
}

/// What the engine knows of a kind, in one line.
fn facts(spec: &KindSpec) -> String {
    let effect = spec.effect.map_or_else(|| "given by the step".to_owned(), |effect| effect.to_string());
    let mut text = format!("Effect: {effect}.");
    if let Some(what) = &spec.destroys {
        let _ = write!(text, " Destroys: {what}.");
    }
    if let Some(what) = &spec.undoes {
        let _ = write!(text, " Undo: {what}.");
    }
    if spec.restores {
        text.push_str(" Reports a recovery point.");
    }
    if let Some(kind) = spec.creates {
        let _ = write!(text, " Makes a {kind}, which later steps use as `{{ from: STEP }}`.");
    }
    if let Some((key, _)) = &spec.body_key {
        let _ = write!(text, " Written as `{key}:` instead of `uses:`.");
    }
    if spec.continues_on_error {
        text.push_str(" A failure does not stop the run, unless `on_error` says otherwise.");
    }
    text
}

fn section(text: &mut String, title: &str, fields: &[Field]) {
    if !fields.is_empty() {
        let _ = write!(text, "\n### {title}\n\n");
        list_fields(text, fields, 0);
    }
}

/// Writes fields as a list, and below each the keys of the maps it takes.
fn list_fields(text: &mut String, fields: &[Field], depth: usize) {
    for field in fields {
        let presence = match (&field.default, field.required) {
            (Some(default), _) => format!(", default `{default}`"),
            (None, true) => String::new(),
            (None, false) => ", optional".to_owned(),
        };
        let indent = "  ".repeat(depth);
        let _ = writeln!(
            text,
            "{indent}- `{}` ({}{presence}): {}",
            field.name,
            kind_of(&field.ty),
            field.summary
        );
        list_fields(text, keys_of(&field.ty), depth + 1);
    }
}

/// The type in words, with what it is used for.
fn kind_of(ty: &Type) -> String {
    match ty {
        Type::Resource { access: Access::Read, .. } => format!("{ty}, read"),
        Type::Resource { access: Access::Write, .. } => format!("{ty}, changed"),
        Type::Conditions(names) if !names.is_empty() => {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("{ty} over {}", names.join(", "))
        }
        _ => ty.to_string(),
    }
}

fn keys_of(ty: &Type) -> &[Field] {
    match ty {
        Type::Object(fields) => fields,
        Type::List(of) | Type::Map(of) => keys_of(of),
        _ => &[],
    }
}

const HEAD: &str = "\
# Step kinds

Generated from the code by `lifeboat steps --reference`; do not edit. `lifeboat steps KIND` prints one of these sections.

The *effect* says what happens to a step that was cut off: `read` and `idempotent` ones run again, `guarded` ones are
looked at first, for `once` a person is asked. What is *destroyed* must be confirmed in a protected environment. A parameter
without `optional` or a default must be given. Conditions are bare expressions: see [runbooks.md](runbooks.md#expressions).
";

/// The whole reference.
pub(crate) fn reference(registry: &Registry) -> String {
    let mut text = format!("{HEAD}\n| kind | what it does |\n|---|---|\n");
    for spec in registry.specs() {
        let anchor = spec.name.replace('.', "");
        let _ = writeln!(text, "| [{}](#{anchor}) | {} |", spec.name, spec.summary);
    }
    registry.specs().fold(text, |mut text, spec| {
        let _ = write!(text, "\n{}", page(spec));
        text
    })
}
