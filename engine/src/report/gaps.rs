//! When nobody worked on a run.

use crate::model::event::{Event, EventKind};

/// For each event, whether no process worked on the run between it and the event before.
///
/// A gap is from the last event that only an engine writes to the next `EngineStarted`. People's words may fall
/// into it, because any command may write them while nobody works on the run.
pub(super) fn gaps_before(events: &[Event]) -> Vec<bool> {
    let mut gaps = vec![false; events.len()];
    let mut last_of_engine = None;
    for (index, event) in events.iter().enumerate() {
        let started = matches!(event.kind, EventKind::EngineStarted { .. });
        if let (true, Some(last)) = (started, last_of_engine) {
            gaps[last + 1..=index].fill(true);
        }
        let by_anyone = matches!(
            event.kind,
            EventKind::Decided { .. }
                | EventKind::Refused { .. }
                | EventKind::QuestionAnswered { .. }
                | EventKind::Noted { .. }
                // It stands before the word of the process that read it.
                | EventKind::ClockRead { .. }
        );
        let engine_seen = started || last_of_engine.is_some();
        if engine_seen && !by_anyone {
            last_of_engine = Some(index);
        }
    }
    gaps
}
