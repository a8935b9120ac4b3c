use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::inline::Inlined;
use super::plan::{CompileRequest, fixed_names};
use super::scopes::Scopes;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::expr::{self, bind_input};

/// Returns the names that the run locks: its own, and those of the runbooks that it calls. What cannot be known before
/// the run is an error.
pub(super) fn locks(
    request: &CompileRequest<'_>,
    inlined: &Inlined<'_, '_>,
    scopes: &Scopes,
    out: &mut Diagnostics,
) -> Vec<String> {
    if scopes.inputs[0].is_empty() && !request.runbook.inputs.is_empty() {
        // Without its inputs nothing of the run is known, which has been reported.
        return Vec::new();
    }
    let fixed = fixed_names(request);
    let mut found = BTreeSet::new();
    let mut known: Vec<Map<String, Value>> = Vec::new();
    for file in 0..inlined.files.len() {
        let mut names = fixed.clone();
        let inputs = known_inputs(inlined, scopes, &known, file, &fixed);
        names.insert("inputs".to_owned(), Value::Object(inputs));
        let spec = inlined.files[file].analysis.spec;
        for lock in &spec.locks {
            match expr::render_text(&lock.name.value, &names) {
                Ok(name) if !name.trim().is_empty() => {
                    found.insert(name.trim().to_owned());
                }
                Ok(_) => out.push(unknown(spec, lock, "it is empty")),
                Err(error) => out.push(unknown(spec, lock, &error.message)),
            }
        }
        known.push(names);
    }
    found.into_iter().collect()
}

fn unknown(spec: &crate::spec::RunbookSpec, lock: &crate::spec::LockSpec, why: &str) -> Diagnostic {
    let message = format!("the name of this lock is not known before the run: {why}");
    Diagnostic::error(codes::LB0165, message)
        .at(&spec.source, lock.name.span.clone())
        .help("make it of `inputs`, `vars` and `resources` that are known then, or write it out")
}

/// Returns the inputs of a runbook that are known before the run: all of its own, and of one that is called those
/// whose value does not depend on a step.
fn known_inputs(
    inlined: &Inlined<'_, '_>,
    scopes: &Scopes,
    known: &[Map<String, Value>],
    file: usize,
    fixed: &Map<String, Value>,
) -> Map<String, Value> {
    let mut inputs = scopes.inputs[file].clone();
    let Some(caller) = inlined.files[file].caller else { return inputs };
    let with = &inlined.files[caller.file].analysis.calls[&caller.at].with;
    for input in &inlined.files[file].analysis.spec.inputs {
        let given = with.get(&input.decl.name).map(|value| expr::render_any(value, &known[caller.file]));
        let given = match given {
            Some(Err(_)) => continue,
            Some(Ok(value)) => Some(value),
            None => None,
        };
        let mut names = fixed.clone();
        names.insert("inputs".to_owned(), Value::Object(inputs.clone()));
        if !inputs.contains_key(&input.decl.name)
            && let Ok(value) = bind_input(&input.decl, given.as_ref(), &names)
        {
            inputs.insert(input.decl.name.clone(), value);
        }
    }
    inputs
}
