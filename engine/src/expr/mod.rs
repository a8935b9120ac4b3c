//! Expressions and templates. Nothing else knows minijinja, except the report's page in HTML.
//!
//! *Before* a run, [`parse`] and [`references`] say what an expression reads, so that a name that cannot exist is
//! found without running anything. *During* a run, [`evaluate`], [`holds`], [`check_all`] and [`render`] give values.
//!
//! The names that the engine gives to every evaluation are `inputs`, `vars`, `steps`, `run`, `incident` and
//! `resources`. Under `steps` every step that has ended must have an entry, an empty map if it has no outputs:
//! `steps.x.y | default(1)` works only if `steps.x` exists.

mod command;
mod decide;
mod environment;
mod evaluate;
mod filters;
mod fit;
mod inputs;
pub(crate) mod names;
mod references;
mod render;
mod script;
mod template;
mod words;

pub use decide::{known_false, known_true};
pub use evaluate::{ExprError, check_all, evaluate, holds};
pub use fit::fit;
pub use inputs::{InputDecl, InputProblem, ProblemKind, bind_input, bind_inputs};
pub use names::{INCIDENT_FIELDS, NAMESPACES, RUN_FIELDS, public_attributes, resource_names};
pub use references::{Guard, Part, Reference, references, shown_by_success};
pub use render::{render, render_any};
pub use script::{Hole, Refused, holes, quote, render_script};
pub use template::{Shape, has_template, input_name, parse, render_text};
