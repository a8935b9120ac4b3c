use super::bodies::{Around, StepBody, read_body};
use super::order::OrderedStep;
use crate::diagnostic::{Diagnostic, Diagnostics, codes};
use crate::spec::{Body, Spanned, UndoSpec};
use crate::step::{Effect, KindSpec};

/// Reads what takes the work of a step back. `None` if the step does not say, or if nothing can run, which has been
/// reported.
pub(super) fn read_undo<'a>(
    around: &Around<'a>,
    step: &OrderedStep<'_>,
    out: &mut Diagnostics,
) -> Option<StepBody<'a>> {
    let undo = step.spec.undo.as_ref()?;
    if step.always {
        let id = &step.spec.common.id.value;
        let message = format!("`{id}` is a step of `always`, which runs after everything is undone");
        out.push(
            Diagnostic::error(codes::LB0155, message)
                .at(around.source, undo.span.clone())
                .help("remove `undo`"),
        );
    }
    let kind = match &undo.step.body {
        Body::Uses { kind, .. } => around.registry.spec(&kind.value),
        Body::Key { key, .. } => around.registry.by_body_key(&key.value).map(|(kind, _)| kind),
        Body::Call(_) | Body::Unclear => None,
    };
    let mut spec = (*undo.step).clone();
    if kind.is_some_and(|kind| kind.effect.is_none()) {
        // An undo must be safe to repeat, so there is nothing to say about its effect.
        spec.effect = Some(Spanned::new(Effect::Idempotent, undo.span.clone()));
    }
    if let Some(kind) = kind.filter(|kind| kind.effect == Some(Effect::Once) && !kind.waits_for_people) {
        return refuse_once(around, undo, kind, out);
    }
    read_body(around, &spec, out)
}

fn refuse_once<'a>(
    around: &Around<'a>,
    undo: &UndoSpec,
    kind: &KindSpec,
    out: &mut Diagnostics,
) -> Option<StepBody<'a>> {
    let span = match &undo.step.body {
        Body::Uses { kind, .. } => kind.span.clone(),
        _ => undo.span.clone(),
    };
    let message = format!("`{}` must not be repeated, so it cannot undo anything", kind.name);
    out.push(
        Diagnostic::error(codes::LB0156, message)
            .at(around.source, span)
            .help("an undo runs again after a crash: use a kind or a script that may"),
    );
    None
}
