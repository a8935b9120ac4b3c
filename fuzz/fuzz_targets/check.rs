//! Reading and compiling whatever bytes a runbook may hold.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lifeboat_engine::compile;
use lifeboat_engine::diagnostic::{Diagnostics, Source, Style, render};
use lifeboat_engine::expr::holes;
use lifeboat_engine::project::Project;
use lifeboat_engine::spec::{EnvironmentSpec, RunbookSpec};
use lifeboat_engine::step::Registry;

thread_local! {
    static AROUND: (Project, Registry) = {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/project");
        (Project::load(&dir).expect("the project of the corpus"), Registry::new())
    };
}

fuzz_target!(|bytes: &[u8]| {
    let mut out = Diagnostics::new();
    let Some(source) = Source::from_bytes("x.yaml", bytes.to_vec(), &mut out) else { return };
    EnvironmentSpec::read(&source, Path::new("/p"), &mut Diagnostics::new());
    holes(&source.text);
    AROUND.with(|(project, registry)| {
        if let Some(spec) = RunbookSpec::read(&source, Path::new("/p"), &mut out) {
            compile::check(project, &spec, registry, &mut out);
        }
    });
    out.sort();
    render(&out, Style::Plain);
});
