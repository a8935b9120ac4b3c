//! What an attempt belongs to.

use crate::model::ids::StepId;
use crate::plan::Plan;

/// A step, or one element of a step that is repeated for each element of a list.
///
/// Elements follow their step in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// The position of the step in the plan, or of an undo, which stand behind the steps.
    pub position: usize,
    /// Which element, from 0; absent for the step as a whole.
    pub element: Option<usize>,
}

impl Unit {
    /// Returns the step at a position as a whole.
    pub fn whole(position: usize) -> Self {
        Self { position, element: None }
    }

    /// Returns one element of the step at a position.
    pub fn element(position: usize, element: usize) -> Self {
        Self { position, element: Some(element) }
    }

    /// Returns the id under which the journal and people know it.
    pub fn id(self, plan: &Plan) -> StepId {
        let step = &plan.at(self.position).id;
        self.element.map_or_else(|| step.clone(), |element| step.of_element(element))
    }
}
