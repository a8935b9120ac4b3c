//! `lifeboat graph`: what happens in which order, drawn.

use lifeboat_engine::compile;
use lifeboat_engine::drawing::{self, Paper};
use lifeboat_engine::project::Project;
use lifeboat_engine::report::page::{Piece, Tone};
use lifeboat_engine::step::Registry;

use crate::args::{Format, GraphArgs};
use crate::commands::files::refuse;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// Draws a runbook from its files.
pub(crate) fn graph(project: &Project, registry: &Registry, args: &GraphArgs, format: Format) -> Outcome {
    let runbook = project.runbook(&args.runbook).map_err(|problems| refuse(&problems))?;
    let environment = match &args.env {
        Some(name) => Some(project.environment(name).map_err(|problems| refuse(&problems))?),
        None => None,
    };
    let shape =
        compile::shape(project, runbook, environment, registry).map_err(|problems| refuse(&problems))?;
    match format {
        Format::Json => crate::say::put!("{}", render::json(&shape)?),
        Format::Mermaid => crate::say::put!("{}", drawing::mermaid(&shape)),
        Format::Text => {
            let mut head = vec![Piece::new(&shape.runbook, Tone::Strong)];
            if !shape.title.is_empty() && shape.title != shape.runbook {
                head.push(Piece::plain(format!(": {}", shape.title)));
            }
            let paper = Paper { width: render::width(), glyphs: render::glyphs() };
            render::print_lines(&[head, Vec::new()]);
            render::print_lines(&drawing::terminal(&shape, paper));
        }
        _ => return Err(Failure::usage("a graph comes as text, mermaid or json")),
    }
    Ok(Exit::Success)
}
