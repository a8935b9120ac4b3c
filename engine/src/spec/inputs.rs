use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::reader::Reader;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::expr::InputDecl;
use crate::yaml;

/// Reads a file of inputs, `key: value` a line, against what a runbook declares. Relative paths start at `dir`.
///
/// Inputs that are not in the file are not missed: they may be given elsewhere.
pub fn read_inputs(
    source: &Arc<Source>,
    dir: &Path,
    declared: &[InputDecl],
    out: &mut Diagnostics,
) -> Option<Map<String, Value>> {
    let root = yaml::parse(source, out)?;
    if root.is_null() {
        return Some(Map::new());
    }
    let mut reader = Reader::new(source, out, dir);
    let fields: Vec<_> = declared.iter().map(InputDecl::as_field).collect();
    let map = reader.object(&root, &fields, "this file of inputs")?;
    for input in declared {
        let problem = map.get(&input.name).and_then(|value| input.check_pattern(value).err());
        if let (Some(message), Some(node)) = (problem, root.get(&input.name)) {
            let diagnostic = Diagnostic::error(codes::LB0143, message).at(source, node.span.clone());
            out.push(diagnostic);
        }
    }
    Some(map)
}
