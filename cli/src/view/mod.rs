//! What a person sees while a run goes on: the same story as plain lines in a pipe and, in a terminal, above bars
//! that move.

mod aside;
mod live;
mod story;

use std::sync::Arc;

use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{Event, RunId};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::driver::Reporter;

pub(crate) use aside::Aside;
use live::Live;
use story::Story;

/// Shows a run on standard error.
pub(crate) struct View {
    place: Place,
    story: Story,
    screen: Screen,
}

enum Screen {
    Lines,
    Live(Live),
}

/// Where a run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where words can be typed.
    Terminal,
    /// A terminal that only looks on.
    Onlooker,
    Pipe,
}

impl View {
    pub(crate) fn new(run: RunId, plan: Arc<Plan>, place: Place) -> Self {
        let screen = match place {
            Place::Terminal | Place::Onlooker => Screen::Live(Live::new(Arc::clone(&plan))),
            Place::Pipe => Screen::Lines,
        };
        Self { place, story: Story::new(run, plan), screen }
    }

    /// Takes in what happened before this process took the run over, without showing it again.
    pub(crate) fn catch_up(&mut self, events: &[Event]) {
        for event in events {
            drop(self.story.tell(event.at_ms, &event.kind, self.place));
            if let Screen::Live(screen) = &mut self.screen {
                screen.catch_up(event);
            }
        }
    }
}

impl Reporter for View {
    fn on_event(&mut self, at_ms: i64, event: &EventKind) {
        let lines = self.story.tell(at_ms, event, self.place);
        match &mut self.screen {
            Screen::Lines => lines.iter().for_each(|line| crate::say::say!("{line}")),
            Screen::Live(screen) => {
                screen.on_event(at_ms, event);
                lines.iter().for_each(|line| screen.print(line));
            }
        }
    }
}
