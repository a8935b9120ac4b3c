//! `lifeboat evidence`: all that is known of a run in one archive, and checking one.

use std::path::{Path, PathBuf};

use lifeboat_engine::evidence::{self, Error, Verified, Written};
use lifeboat_engine::model::RunOutcome;
use lifeboat_engine::report::Owner;
use lifeboat_engine::report::human::Moment;
use lifeboat_engine::runs::StateDir;
use serde_json::json;

use crate::args::{EvidenceArgs, Format, VerifyArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// Writes the evidence of a run.
pub(crate) fn write(state: &StateDir, args: &EvidenceArgs, format: Format) -> Outcome {
    let run = state.find(&args.run).map_err(|error| render::runs(&error))?;
    let holder = run.owner().map_err(|error| render::runs(&error))?;
    let owner = if holder.is_some() { Owner::Present } else { Owner::Gone };
    let name = || PathBuf::from(format!("evidence-{}.tar.gz", run.id().short()));
    let path = args.output.clone().unwrap_or_else(name);
    let now = Moment(jiff::Timestamp::now().as_millisecond());
    let written = evidence::write(&run, owner, now, &path).map_err(|error| failure(&error))?;
    match format {
        Format::Json => crate::say::put!("{}", render::json(&facts(&written, &path, &run.id().to_string()))?),
        Format::Text => tell_written(&written, &path),
        _ => return Err(Failure::usage("what was written is told as text or json")),
    }
    Ok(Exit::Success)
}

fn facts(written: &Written, path: &Path, run: &str) -> serde_json::Value {
    json!({
        "archive": path,
        "run": run,
        "ended": written.ended,
        "events": written.events,
        "head": written.head,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "not_in_chain": written.not_in_chain,
        "missing": written.missing,
    })
}

fn tell_written(written: &Written, path: &Path) {
    crate::say::putln!("{}", path.display());
    crate::say::putln!("  head    {}", written.head);
    crate::say::putln!("  sha256  {}", written.sha256);
    for name in &written.missing {
        crate::say::say!("warning: {name} is not in it, for it is not there any more");
    }
    for name in &written.not_in_chain {
        crate::say::say!("warning: {name} is in it, but nothing in the journal says what it was");
    }
    if !written.ended {
        crate::say::say!(
            "the run has not ended: what comes later is not in it, and the head will be another"
        );
    }
    let (path, head) = (lifeboat_engine::expr::quote(&path.display().to_string()), &written.head);
    crate::say::say!("\nto check it: lifeboat evidence verify {path} --head {head}");
}

/// Checks an archive of evidence, with nothing but the archive and the head.
pub(crate) fn verify(args: &VerifyArgs, format: Format) -> Outcome {
    if let Some(head) = &args.head
        && (head.len() != 64 || !head.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(Failure::usage(format!("`{head}` is no head: it has 64 hexadecimal digits"))
            .help("it stands in the last lines of the run, in its report, and in the notice of its end"));
    }
    let verified = evidence::verify(&args.archive, args.head.as_deref()).map_err(|error| failure(&error))?;
    match format {
        Format::Json => crate::say::put!("{}", render::json(&found(&verified))?),
        Format::Text => tell_verified(&verified),
        _ => return Err(Failure::usage("what was found is told as text or json")),
    }
    Ok(if is_proof(&verified) { Exit::Success } else { Exit::Objective })
}

/// Says whether the archive is proven to be whole, and what the run left behind.
fn is_proof(verified: &Verified) -> bool {
    verified.compared && verified.not_in_chain.is_empty() && verified.missing.is_empty()
}

fn found(verified: &Verified) -> serde_json::Value {
    json!({
        "verified": is_proof(verified),
        "head_compared": verified.compared,
        "run": verified.run,
        "runbook": verified.runbook,
        "environment": verified.environment,
        "outcome": verified.outcome,
        "head": verified.head,
        "essential_events": verified.essential_events,
        "advisory_events": verified.advisory_events,
        "files": verified.files,
        "not_in_chain": verified.not_in_chain,
        "missing": verified.missing,
    })
}

fn tell_verified(verified: &Verified) {
    let outcome = match verified.outcome {
        Some(RunOutcome::Succeeded) => "succeeded",
        Some(RunOutcome::Failed) => "failed",
        Some(RunOutcome::Aborted) => "was aborted",
        None => "had NOT ENDED when this was made",
    };
    let verdict = match (verified.compared, is_proof(verified)) {
        (true, true) => "VERIFIED",
        (true, false) => "VERIFIED, with gaps",
        (false, _) => "CONSISTENT IN ITSELF, which proves little",
    };
    let Verified { run, runbook, environment, essential_events, advisory_events, files, .. } = verified;
    crate::say::putln!("{verdict}: {runbook}@{environment}, run {run}, which {outcome}");
    crate::say::putln!(
        "  {essential_events} events and the plan are as they were written, up to the head {}",
        verified.head
    );
    crate::say::putln!(
        "  {files} files of output and sources are those that the events and the plan speak of"
    );
    crate::say::putln!("  the reports are what the events say");
    if *advisory_events > 0 {
        crate::say::putln!("  not proven: {advisory_events} advisory events (progress, delivery of notices)");
    }
    for name in &verified.not_in_chain {
        crate::say::putln!("  not proven: {name}, of which no event speaks");
    }
    for name in &verified.missing {
        crate::say::putln!("  missing: {name}");
    }
    if !verified.compared {
        crate::say::say!(
            "\nwithout --head nobody can tell whether the end is missing or all of it was made up: take the head from the \
             last lines of the run or from the notice in the channel"
        );
    }
}

fn failure(error: &Error) -> Failure {
    let exit = match error {
        Error::Io { action: "written", .. } => Exit::Failed,
        _ => Exit::Refused,
    };
    render::because(Failure::new(exit, error.to_string()).code(error.code()).help(error.help()), error)
}
