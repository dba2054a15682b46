//! What decided a probe, in as few words as there are: small enough to be kept for millions of them.
//!
//! The programs themselves say it, in the verdict events of the event ring; nothing here evaluates a policy. A probe
//! has at most one verdict that counts per direction: the one that denied it, or else the first.

use agent_core::Direction;
use agent_core::policy::RuleId;
use datapath_abi::{DropReason, Event, EventKind, events, ids};
use simulator_vm::RunError;

use super::{Cluster, Lost, Outcome, Probe};

/// What a policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spoke {
    /// Pass.
    Allow,
    /// Drop.
    Deny,
    /// To a proxy.
    Redirect,
    /// Pass, but the rule would drop it if it were enforced.
    Audit,
}

impl Spoke {
    /// Of a verdict event.
    pub fn of(event: &Event) -> Self {
        match event.verdict {
            ..0 if event.flags & events::AUDITED != 0 => Self::Audit,
            ..0 => Self::Deny,
            0 => Self::Allow,
            1.. => Self::Redirect,
        }
    }

    /// As JSON writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Redirect => "redirect",
            Self::Audit => "audit",
        }
    }

    /// Whether the packet went on by the policy's own word. (What is for a proxy does not, where there is none.)
    pub const fn passes(self) -> bool {
        match self {
            Self::Allow | Self::Audit => true,
            Self::Deny | Self::Redirect => false,
        }
    }
}

/// One verdict: what, and by which rule ([`agent_core::policy::RuleTable`]; 0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// What was said.
    pub spoke: Spoke,
    /// By whom.
    pub rule: RuleId,
    /// The node that has spoken, where it was the policy of the node itself, not of a pod.
    pub node: Option<usize>,
}

/// A verdict with its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spoken {
    direction: Direction,
    said: Said,
}

impl Spoken {
    /// Of an event; `None`: of another kind.
    pub(super) fn of(node: usize, event: &Event) -> Option<Self> {
        if EventKind::from_number(event.kind) != Some(EventKind::PolicyVerdict) {
            return None;
        }
        let direction = if event.flags & events::INGRESS != 0 { Direction::Ingress } else { Direction::Egress };
        let node = (event.endpoint == ids::HOST_ENDPOINT).then_some(node);
        Some(Self { direction, said: Said { spoke: Spoke::of(event), rule: event.rule, node } })
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    /// Request and answer arrived.
    Allowed,
    /// A program dropped a packet.
    Dropped(Option<DropReason>),
    /// A packet got lost otherwise.
    Lost(Lost),
    /// The ends have no address family in common: nothing was sent.
    NoFamily,
}

/// Why a probe ended so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Why {
    /// The end.
    pub ended: Ended,
    /// What the sender's policies said, if they were asked.
    pub egress: Option<Said>,
    /// What the receiver's policies said, if they were asked.
    pub ingress: Option<Said>,
}

impl Why {
    /// Nothing was sent.
    pub const NO_FAMILY: Self = Self { ended: Ended::NoFamily, egress: None, ingress: None };

    /// Whether request and answer arrived.
    pub fn allowed(&self) -> bool {
        self.ended == Ended::Allowed
    }

    /// What was said in a direction.
    pub const fn said(&self, direction: Direction) -> Option<Said> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The direction that denied it, if a policy did.
    pub fn denied_at(&self) -> Option<Direction> {
        let stops = |direction: &Direction| self.said(*direction).is_some_and(|said| !said.spoke.passes());
        if self.allowed() {
            return None;
        }
        [Direction::Egress, Direction::Ingress].into_iter().find(stops)
    }
}

impl Cluster {
    /// Sends a probe and notes what decided it. Needs [`super::Options::verdicts`].
    ///
    /// # Errors
    /// A fault of a program.
    pub fn probe_why(&mut self, probe: &Probe) -> Result<Why, RunError> {
        self.said.clear();
        let ended = match self.probe(probe)? {
            Outcome::Allowed => Ended::Allowed,
            Outcome::Dropped { drop, .. } => Ended::Dropped(drop.reason),
            Outcome::Lost { lost, .. } => Ended::Lost(lost),
        };
        let mut why = Why { ended, egress: None, ingress: None };
        for Spoken { direction, said } in &self.said {
            let place = match direction {
                Direction::Ingress => &mut why.ingress,
                Direction::Egress => &mut why.egress,
            };
            if place.is_none_or(|first| first.spoke.passes() && !said.spoke.passes()) {
                *place = Some(*said);
            }
        }
        Ok(why)
    }
}
