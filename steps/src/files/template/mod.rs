//! `files.template`: writes a configuration file from a template, secrets included.

mod kind;
mod lines;
mod place;
mod render;

pub(super) use kind::Template;
