//! The life of a membership.

use serde::{Deserialize, Serialize};

/// Where a membership stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Pending,
    Approved,
    Rejected,
    Suspended,
}

impl Status {
    pub(crate) const ALL: [Self; 4] = [Self::Pending, Self::Approved, Self::Rejected, Self::Suspended];

    /// The word in the database.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Suspended => "suspended",
        }
    }

    /// Reads the word in the database.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }

    /// Says whether a decision may lead from here to there.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use Status::{Approved, Pending, Rejected, Suspended};
        matches!(
            (self, next),
            (Pending | Suspended, Approved)
                | (Pending, Rejected)
                | (Approved, Suspended)
                | (Rejected, Pending)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_can_be_left_but_not_for_itself() {
        for status in Status::ALL {
            assert!(Status::ALL.into_iter().any(|next| status.may_become(next)), "{status:?}");
            assert!(!status.may_become(status), "{status:?}");
            assert_eq!(Status::from_word(status.word()), Some(status));
        }
    }

    #[test]
    fn a_rejected_member_is_not_approved_at_once() {
        assert!(!Status::Rejected.may_become(Status::Approved));
    }
}
