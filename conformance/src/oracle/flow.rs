//! A flow between two addresses: what the policies of its two ends say, pods and nodes alike.
//!
//! The sender's egress is asked first; where it stops the flow, the receiver is not asked any more. Ends outside have no
//! policies. A node has some only with the host firewall, and only if a policy is about it.

use std::net::IpAddr;

use agent_core::model::Node;
use agent_core::model::cilium::CiliumSubject;
use agent_core::policy::Direction;

use super::{Answer, Oracle, Outcome, Question, Subject};

/// A new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Sender.
    pub from: IpAddr,
    /// Receiver.
    pub to: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Destination port, or the type of ICMP.
    pub port: u16,
}

/// What both ends say; `None`: that end has no policies, or is not asked any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// The sender.
    pub egress: Option<Answer>,
    /// The receiver.
    pub ingress: Option<Answer>,
}

impl Said {
    /// What becomes of the flow.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let said = [self.egress, self.ingress].into_iter().flatten().map(|answer| answer.outcome);
        said.into_iter().find(|outcome| *outcome != Outcome::Allow).unwrap_or(Outcome::Allow)
    }

    /// Who stops it, if anybody does.
    #[must_use]
    pub fn stopped_at(&self) -> Option<Direction> {
        let stops = |answer: Option<Answer>| answer.is_some_and(|answer| answer.outcome != Outcome::Allow);
        match (stops(self.egress), stops(self.ingress)) {
            (true, _) => Some(Direction::Egress),
            (false, true) => Some(Direction::Ingress),
            (false, false) => None,
        }
    }

    /// Whether it passes only because a policy is not enforced but reported.
    #[must_use]
    pub fn audited(&self) -> bool {
        self.stopped_at().is_none() && [self.egress, self.ingress].iter().flatten().any(|answer| answer.audit)
    }
}

impl<'a> Oracle<'a> {
    /// What both ends say about a flow.
    #[must_use]
    pub fn flow(&self, flow: &Flow) -> Said {
        let ask = |own: IpAddr, peer: IpAddr, direction: Direction| {
            let subject = self.subject(own)?;
            Some(self.ask(&Question { subject, direction, peer, protocol: flow.protocol, port: flow.port }))
        };
        let egress = ask(flow.from, flow.to, Direction::Egress);
        let goes_on = egress.is_none_or(|answer| answer.outcome == Outcome::Allow);
        Said { egress, ingress: goes_on.then(|| ask(flow.to, flow.from, Direction::Ingress)).flatten() }
    }

    /// Whose policies are asked about an address.
    fn subject(&self, address: IpAddr) -> Option<Subject<'a>> {
        let mut pods = self.model.pods().values().filter(|pod| !pod.host_network);
        if let Some(pod) = pods.find(|pod| pod.addresses.contains(&address)) {
            return Some(Subject::Pod(pod));
        }
        let node = self.model.nodes().iter().find(|node| node.addresses.contains(&address))?;
        (self.settings.host_firewall && self.is_asked(node)).then_some(Subject::Node(node))
    }

    fn is_asked(&self, node: &Node) -> bool {
        let mut subjects =
            self.model.cilium_policies().values().flat_map(|policy| &policy.specs).map(|spec| &spec.subject);
        subjects.any(|subject| match subject {
            CiliumSubject::Nodes(selector) => selector.matches(&node.labels),
            CiliumSubject::Pods(_) => false,
        })
    }
}
