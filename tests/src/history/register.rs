//! One key of a store as a register with compare-and-swap: what each answer says of the state, and makes of it.

/// On which condition a write happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// There is nothing.
    Absent,
    /// The last write is this one.
    At(u64),
    /// Whatever there is.
    Any,
}

/// What a write does. Values differ, so that each tells its write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Sets the value.
    Put(u64),
    /// Removes it. There must be something.
    Delete,
}

/// A value and the revision of its write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Which.
    pub value: u64,
    /// Of its write.
    pub revision: u64,
}

/// What was asked, and the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// What there was.
    Read(Option<Seen>),
    /// It happened, as this revision.
    Written {
        /// The condition.
        expect: Expect,
        /// The effect.
        change: Change,
        /// Its own.
        revision: u64,
    },
    /// It did not happen, because the last write was another.
    Refused {
        /// The condition.
        expect: Expect,
        /// The effect it would have had.
        change: Change,
        /// The last write.
        current: Option<u64>,
    },
    /// Nobody knows: it happened, will happen, or never does.
    Unknown {
        /// The condition.
        expect: Expect,
        /// The effect.
        change: Change,
    },
}

impl Operation {
    /// Whether it may be left out of an order.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// What a register holds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum State {
    #[default]
    Empty,
    /// A write whose revision was told.
    Known { value: u64, revision: u64 },
    /// A write of unknown outcome that happened: its revision is whatever is seen first.
    Untold { value: u64 },
}

impl State {
    /// The state after an operation; `None` if it cannot be so in this state.
    pub(super) fn after(self, operation: &Operation) -> Option<Self> {
        match *operation {
            Operation::Read(None) => (self == Self::Empty).then_some(self),
            Operation::Read(Some(seen)) => match self {
                Self::Known { value, revision } => (value == seen.value && revision == seen.revision).then_some(self),
                Self::Untold { value } => (value == seen.value).then_some(Self::Known {
                    value,
                    revision: seen.revision,
                }),
                Self::Empty => None,
            },
            Operation::Written {
                expect,
                change,
                revision,
            } => self.allows(expect, change).then_some(match change {
                Change::Put(value) => Self::Known { value, revision },
                Change::Delete => Self::Empty,
            }),
            Operation::Unknown { expect, change } => self.allows(expect, change).then_some(match change {
                Change::Put(value) => Self::Untold { value },
                Change::Delete => Self::Empty,
            }),
            Operation::Refused {
                expect,
                change,
                current,
            } => {
                let told = match (self, current) {
                    (Self::Empty, None) => self,
                    (Self::Known { revision, .. }, Some(current)) if revision == current => self,
                    (Self::Untold { value }, Some(revision)) => Self::Known { value, revision },
                    (Self::Empty | Self::Known { .. } | Self::Untold { .. }, _) => return None,
                };
                (!told.allows(expect, change)).then_some(told)
            }
        }
    }

    /// Whether a write may happen now.
    fn allows(self, expect: Expect, change: Change) -> bool {
        let there = self != Self::Empty;
        let expected = match (expect, self) {
            (Expect::Absent, _) => !there,
            (Expect::At(wanted), Self::Known { revision, .. }) => wanted == revision,
            // Who expects a revision has seen it: it is this one's, or the search finds no way on.
            (Expect::At(_), Self::Untold { .. }) => true,
            (Expect::At(_), Self::Empty) => false,
            (Expect::Any, _) => true,
        };
        expected && (there || change != Change::Delete)
    }
}
