//! What decided a probe, in as few words as there are: small enough to be kept for millions of them.
//!
//! The programs themselves say it, in the verdict events of the event ring; nothing here evaluates a policy. A probe
//! has at most one verdict that counts per direction: the one that stopped it, or that would have, or else the first.

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

/// What people call the end of a probe. In order: what lets most pass comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Request and answer arrive.
    Allow,
    /// They arrive, and a policy that only audits would have stopped them.
    Audit,
    /// A rule hands the packet to a proxy: it decides. There is none in the simulator, so nothing arrives.
    Redirect,
    /// They do not arrive.
    Deny,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Allow, Self::Audit, Self::Redirect, Self::Deny];

    /// As commands and files write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Redirect => "redirect",
            Self::Deny => "deny",
        }
    }

    /// From its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
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
    /// What would have been, or is, the reason of a drop.
    reason: Option<DropReason>,
}

impl Spoken {
    /// Of an event; `None`: of another kind.
    pub(super) fn of(node: usize, event: &Event) -> Option<Self> {
        if EventKind::from_number(event.kind) != Some(EventKind::PolicyVerdict) {
            return None;
        }
        let direction = if event.flags & events::INGRESS != 0 { Direction::Ingress } else { Direction::Egress };
        let node = (event.endpoint == ids::HOST_ENDPOINT).then_some(node);
        let reason = u8::try_from(event.verdict.unsigned_abs()).ok().filter(|_| event.verdict < 0);
        let reason = reason.and_then(DropReason::from_number);
        Some(Self { direction, said: Said { spoke: Spoke::of(event), rule: event.rule, node }, reason })
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

    /// The end in one word.
    pub fn verdict(&self) -> Verdict {
        let audited = || [self.egress, self.ingress].iter().flatten().any(|said| said.spoke == Spoke::Audit);
        match self.ended {
            Ended::Allowed if audited() => Verdict::Audit,
            Ended::Allowed => Verdict::Allow,
            Ended::Dropped(Some(DropReason::ProxyLookupFailed)) => Verdict::Redirect,
            Ended::Dropped(_) | Ended::Lost(_) | Ended::NoFamily => Verdict::Deny,
        }
    }

    /// What was said in a direction.
    pub const fn said(&self, direction: Direction) -> Option<Said> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The direction whose policy made it more than allowed: denied it, has a proxy decide, or only audits.
    pub fn decided_at(&self) -> Option<Direction> {
        let decides = |direction: &Direction| {
            self.said(*direction).is_some_and(|said| match said.spoke {
                Spoke::Allow => false,
                Spoke::Audit => self.allowed(),
                Spoke::Deny | Spoke::Redirect => !self.allowed(),
            })
        };
        [Direction::Egress, Direction::Ingress].into_iter().find(decides)
    }
}

/// Of several verdicts in one direction the heaviest counts.
const fn weight(spoke: Spoke) -> u8 {
    match spoke {
        Spoke::Allow => 0,
        Spoke::Audit => 1,
        Spoke::Deny | Spoke::Redirect => 2,
    }
}

/// What a policy that only audits would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audited {
    /// Direction, seen from whom the policy is about.
    pub direction: Direction,
    /// Why it would have dropped the packet.
    pub reason: Option<DropReason>,
    /// The rule that would have; 0: none matches.
    pub rule: RuleId,
}

impl Cluster {
    /// What policies that only audit would have done with the last probe: the first of them that would have stopped it.
    pub fn audited(&self) -> Option<Audited> {
        let found = self.said.iter().find(|spoken| spoken.said.spoke == Spoke::Audit)?;
        Some(Audited { direction: found.direction, reason: found.reason, rule: found.said.rule })
    }

    /// The last probe's outcome in one word.
    pub fn verdict(&self, outcome: &Outcome) -> Verdict {
        match outcome {
            Outcome::Allowed if self.audited().is_some() => Verdict::Audit,
            Outcome::Allowed => Verdict::Allow,
            Outcome::Dropped { .. } if outcome.redirected().is_some() => Verdict::Redirect,
            Outcome::Dropped { .. } | Outcome::Lost { .. } => Verdict::Deny,
        }
    }

    /// Sends a probe and notes what decided it. Needs [`super::Options::verdicts`].
    ///
    /// # Errors
    /// A fault of a program.
    pub fn probe_why(&mut self, probe: &Probe) -> Result<Why, RunError> {
        let ended = match self.probe(probe)? {
            Outcome::Allowed => Ended::Allowed,
            Outcome::Dropped { drop, .. } => Ended::Dropped(drop.reason),
            Outcome::Lost { lost, .. } => Ended::Lost(lost),
        };
        let mut why = Why { ended, egress: None, ingress: None };
        for Spoken { direction, said, .. } in &self.said {
            let place = match direction {
                Direction::Ingress => &mut why.ingress,
                Direction::Egress => &mut why.egress,
            };
            if place.is_none_or(|first| weight(first.spoke) < weight(said.spoke)) {
                *place = Some(*said);
            }
        }
        Ok(why)
    }
}
