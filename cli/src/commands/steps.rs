//! `lifeboat steps`: the step kinds and their contracts.

use std::fmt::Write;

use lifeboat_engine::step::{KindSpec, Registry};
use lifeboat_engine::value::Field;

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
    anstream::println!("{}", text.trim_end());
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
    let mut text = format!("## {}\n\n{}\n", spec.name, spec.summary);
    let effect = spec.effect.map_or_else(|| "given by the step".to_owned(), |effect| effect.to_string());
    let _ = write!(text, "\nEffect: {effect}.");
    if let Some(what) = &spec.destroys {
        let _ = write!(text, " Destroys: {what}.");
    }
    if let Some((key, _)) = &spec.body_key {
        let _ = write!(text, " Written as `{key}:` instead of `uses:`.");
    }
    text.push('\n');
    if !spec.doc.trim().is_empty() {
        let _ = write!(text, "\n{}\n", spec.doc.trim());
    }
    fields(&mut text, "Parameters", &spec.params);
    fields(&mut text, "Outputs", &spec.outputs);
    text
}

fn fields(text: &mut String, title: &str, fields: &[Field]) {
    if fields.is_empty() {
        return;
    }
    let _ = write!(text, "\n### {title}\n\n");
    for field in fields {
        let presence = match (&field.default, field.required) {
            (Some(default), _) => format!(", default `{default}`"),
            (None, true) => String::new(),
            (None, false) => ", optional".to_owned(),
        };
        let _ = writeln!(text, "- `{}` ({}{presence}): {}", field.name, field.ty, field.summary);
    }
}

/// The whole reference.
pub(crate) fn reference(registry: &Registry) -> String {
    let head = "# Step kinds\n\nGenerated from the code by `lifeboat steps --reference`; do not edit.\n";
    registry.specs().fold(head.to_owned(), |mut text, spec| {
        let _ = write!(text, "\n{}", page(spec));
        text
    })
}
