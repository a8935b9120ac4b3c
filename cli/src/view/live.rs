//! The bars at the bottom of a terminal: what runs, how far it is, and the RTO.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{Event, StepId, Unit};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::report::human;

use super::story::measure;
use crate::say::visible;

/// Bars for running steps, and one for the RTO below them.
pub(super) struct Live {
    plan: Arc<Plan>,
    bars: MultiProgress,
    running: HashMap<StepId, ProgressBar>,
    rto: Option<ProgressBar>,
    ended: usize,
}

impl Live {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Self { plan, bars: MultiProgress::new(), running: HashMap::new(), rto: None, ended: 0 }
    }

    /// Prints a line above the bars.
    pub(super) fn print(&self, line: &str) {
        let line = if anstream::AutoStream::choice(&std::io::stderr()) == anstream::ColorChoice::Never {
            anstream::adapter::strip_str(line).to_string()
        } else {
            line.to_owned()
        };
        // A terminal that is gone takes no lines; the run goes on.
        let _ = self.bars.println(line);
    }

    pub(super) fn on_event(&mut self, at_ms: i64, event: &EventKind) {
        match event {
            EventKind::RunDeclared { incident_at_ms, .. } => self.begin(now_ms() - incident_at_ms),
            EventKind::ElementsChosen { step, elements } => {
                self.start(at_ms, step);
                self.bound(step, elements.len());
            }
            EventKind::AttemptStarted { step, .. } => self.start(at_ms, step),
            EventKind::Progressed { step, progress, .. } => {
                if let Some(bar) = self.running.get(step) {
                    advance(bar, progress);
                }
            }
            EventKind::QuestionAsked { step, .. } => self.say(step, "waits for a person"),
            EventKind::QuestionAnswered { step, .. } => self.say(step, ""),
            EventKind::AttemptFinished { step, .. } => self.stop(step),
            EventKind::StepFinished { step, .. } if step.element().is_some() => self.element_ended(step),
            EventKind::StepFinished { step, .. } => {
                self.stop(step);
                self.ended += usize::from(self.counts(step));
                self.show_rto();
            }
            EventKind::RunFinished { .. } => self.clear(),
            _ => {}
        }
    }

    /// Takes in an event of the past.
    pub(super) fn catch_up(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunDeclared { incident_at_ms, .. } => {
                self.begin(now_ms() - incident_at_ms);
            }
            EventKind::ElementsChosen { step, elements } => {
                self.start(event.at_ms, step);
                self.bound(step, elements.len());
            }
            EventKind::StepFinished { step, .. } if step.element().is_some() => self.element_ended(step),
            EventKind::StepFinished { step, .. } => {
                self.stop(step);
                self.ended += usize::from(self.counts(step));
            }
            _ => {}
        }
    }

    /// Says whether it is one of the steps of the plan: no element of one, and no undo.
    fn counts(&self, step: &StepId) -> bool {
        self.plan.step(step).is_some()
    }

    fn begin(&mut self, elapsed_ms: i64) {
        let elapsed = Duration::from_millis(u64::try_from(elapsed_ms).unwrap_or(0));
        let bar = self.bars.add(ProgressBar::new_spinner().with_elapsed(elapsed));
        bar.set_style(style("{spinner:.cyan} {elapsed_precise} since the incident  {msg}"));
        bar.enable_steady_tick(Duration::from_millis(250));
        self.rto = Some(bar);
        self.show_rto();
    }

    fn show_rto(&self) {
        let Some(bar) = &self.rto else { return };
        let steps = format!("{} of {} steps", self.ended, self.plan.steps.len());
        let target = self.plan.objective.rto.map(|rto| rto.0);
        let left = target.map(|rto| match rto.checked_sub(bar.elapsed()) {
            Some(left) => format!("  {} of the RTO left", human::duration(millis(left))),
            None => format!("  {} over the RTO", human::duration(millis(bar.elapsed() - rto))),
        });
        bar.set_message(steps + &left.unwrap_or_default());
    }

    /// Shows a step that has been running since then: whoever looks on may have come later.
    fn start(&mut self, since_ms: i64, step: &StepId) {
        let elapsed = Duration::from_millis(u64::try_from(now_ms() - since_ms).unwrap_or(0));
        let bar = ProgressBar::new_spinner().with_elapsed(elapsed);
        let bar = match &self.rto {
            Some(rto) => self.bars.insert_before(rto, bar),
            None => self.bars.add(bar),
        };
        bar.set_style(style("  {spinner:.green} {prefix}  {elapsed}  {msg}"));
        bar.set_prefix(step.to_string());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.running.insert(step.clone(), bar);
        self.show_rto();
    }

    /// Gives the bar of a repeated step the number of its elements.
    fn bound(&self, step: &StepId, elements: usize) {
        let Some(bar) = self.running.get(step) else { return };
        bar.set_length(elements as u64);
        bar.set_style(style(
            "  {spinner:.green} {prefix}  [{bar:24.green}] {elapsed}  {pos} of {len} elements",
        ));
    }

    fn element_ended(&self, element: &StepId) {
        if let Some(bar) = self.running.get(&element.whole()) {
            bar.inc(1);
        }
    }

    fn say(&self, step: &StepId, text: &str) {
        if let Some(bar) = self.running.get(step) {
            bar.set_message(text.to_owned());
        }
    }

    fn stop(&mut self, step: &StepId) {
        if let Some(bar) = self.running.remove(step) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn clear(&mut self) {
        self.running.values().for_each(ProgressBar::finish_and_clear);
        if let Some(bar) = self.rto.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}

fn advance(bar: &ProgressBar, progress: &lifeboat_engine::model::Progress) {
    match progress.total {
        Some(total) if total > 0 && progress.unit != Unit::Seconds => {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_style(style("  {spinner:.green} {prefix}  [{bar:24.green}] {elapsed}  {msg}"));
            }
            bar.set_position(progress.done);
        }
        _ => {}
    }
    bar.set_message(visible(&measure(progress)).into_owned());
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a template of our own").progress_chars("█▓░")
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
