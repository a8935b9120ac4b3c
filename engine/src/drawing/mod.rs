//! Drawings of a runbook: what happens in which order, for people who decide whether to start it.
//!
//! A [`Shape`] is what there is to draw. It comes from a runbook's files alone, or from a plan. [`terminal`] draws it in
//! lines of a given width, [`mermaid`] writes it for web pages. Both cost time linear in steps and edges, but for the
//! boxes of a terminal, which are given up for lists where there is much to draw.

mod block;
mod mermaid;
mod nest;
mod shape;
mod terminal;

#[cfg(test)]
mod tests;

pub use block::Line;
pub use mermaid::mermaid;
pub use shape::{Edge, Mark, Shape, ShapeGroup, ShapeStep};
pub(crate) use shape::{MarksOf, marks};
pub use terminal::{Glyphs, Paper, terminal};
