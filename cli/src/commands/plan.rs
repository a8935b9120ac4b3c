//! `lifeboat plan`: what a run would do, how long it would take, and with `--probe` whether the systems are fit for it.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::ProgressBar;
use jiff::Timestamp;
use lifeboat_engine::drawing::Paper;
use lifeboat_engine::model::Mode;
use lifeboat_engine::outlook::{self, Basis, History, Outlook};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::project::Project;
use lifeboat_engine::run::{Preflight, Probed, preflight, preview};
use lifeboat_engine::runs::Past;
use lifeboat_engine::step::Registry;

use crate::args::{Format, PlanArgs};
use crate::commands::{confirm, execute};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// Shows what a run would do. Writes nothing, in no place.
pub(crate) fn plan(project: &Project, registry: &Registry, args: &PlanArgs, format: Format) -> Outcome {
    let mode = if args.drill { Mode::Drill } else { Mode::Recovery };
    let (plan, incident_at) = execute::compile(project, registry, &args.target, mode)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::internal("the runtime cannot start").caused_by(&error))?;
    let history = History::read(&project.spec.state_dir, &plan);
    let previews = runtime.block_on(preview(&plan, registry, incident_at));
    let basis = Basis {
        plan: &plan,
        registry,
        previews: &previews,
        history: &history,
        incident_at,
        now: Timestamp::now(),
    };
    let mut outlook = Outlook::of(basis);
    outlook.confirm = confirm::is_needed(&plan).then(|| confirm::token(&plan));
    let mut exit = Exit::Success;
    if args.probe {
        let past = Past::of(&project.spec.state_dir);
        let probed = runtime.block_on(probe(&Preflight { plan: &plan, registry, incident_at, past: &past }));
        exit = match (probed.has_failed(), probed.misses_objective()) {
            (true, _) => Exit::Failed,
            (false, true) => Exit::Objective,
            (false, false) => Exit::Success,
        };
        outlook.findings = Some(probed.findings);
    }
    // What is stuck in a system call must not keep the answer back.
    runtime.shutdown_background();
    show(&plan, &outlook, format)?;
    Ok(exit)
}

fn show(plan: &Plan, outlook: &Outlook, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => crate::say::put!("{}", render::json(outlook)?),
        Format::Yaml => {
            let text = serde_yaml::to_string(outlook)
                .map_err(|error| Failure::internal("YAML cannot be written").caused_by(&error))?;
            crate::say::put!("{text}");
        }
        Format::Text => {
            let paper = Paper { width: render::width(), glyphs: render::glyphs() };
            render::print_lines(&outlook::lines(outlook, outlook::Manner { paper, plan }));
        }
        _ => return Err(Failure::usage("a plan comes as text, json or yaml")),
    }
    Ok(())
}

/// Probes, and shows on standard error what is being looked at.
async fn probe(of: &Preflight<'_>) -> Probed {
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    if bar.is_hidden() {
        crate::say::say!("looking at the systems that the plan uses; this changes nothing");
    }
    let looking = Mutex::new(Vec::<String>::new());
    let told = |subject: &str, ended: Option<usize>| {
        let Ok(mut looking) = looking.lock() else { return };
        match ended {
            None => looking.push(subject.to_owned()),
            Some(_) => {
                if let Some(at) = looking.iter().position(|it| it == subject) {
                    looking.remove(at);
                }
            }
        }
        bar.set_message(format!("looking at {}", looking.join(", ")));
    };
    let probed = preflight(*of, &told).await;
    bar.finish_and_clear();
    probed
}
