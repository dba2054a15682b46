//! Why a probe ended as it did: every hop, and the rule or policies that decided.

use std::fmt;

use agent_core::model::Name;
use agent_core::policy::{PolicyKind, Proxy, RuleId, RuleOrigin};
use agent_core::{Compiled, Direction, Owner, PolicyRef, RuleInfo};
use datapath_abi::events::FlowState;
use datapath_abi::{DropReason, EventKind, ids};

use super::why::{Said, Spoke};
use super::{Cluster, Hop, Outcome, Party, Probe, Protocol, Verdict, proxy};

/// What a policy said about the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which packet of the probe: 0 the request, 1 the answer, 2 what follows.
    pub leg: usize,
    /// Node that decided.
    pub node: String,
    /// Pod whose policy was asked; `node/NAME`: the node's own policy was.
    pub pod: String,
    /// Direction, seen from the pod.
    pub direction: Direction,
    /// Identity of the peer, with its labels.
    pub peer: String,
    /// What it said.
    pub spoke: Spoke,
    /// Of a redirect: the kinds of proxy that the rule asks for.
    pub proxies: Vec<Proxy>,
    /// Of a redirect: the proxy's port, if there is one.
    pub proxy_port: Option<u16>,
    /// What decided.
    pub by: By,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A rule of a policy.
    Rule(Box<RuleInfo>),
    /// The node may always reach its own pods.
    LocalHost,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// No rule matched, and these policies isolate the pod.
    DefaultDeny(Vec<PolicyRef>),
}

impl By {
    /// What a verdict about a pod's flow goes back to.
    pub fn of(compiled: &Compiled, spoke: Spoke, rule: RuleId, pod: Option<&Name>, direction: Direction) -> Self {
        if rule == 0 && spoke != Spoke::Allow {
            return Self::DefaultDeny(pod.map(|pod| compiled.isolating(pod, direction)).unwrap_or_default());
        }
        match compiled.rules().origin(rule) {
            RuleOrigin::Rule(rule) => Self::Rule(Box::new(rule.clone())),
            RuleOrigin::LocalHost => Self::LocalHost,
            RuleOrigin::NotIsolated | RuleOrigin::Gone => Self::NotIsolated,
        }
    }

    /// The same for [`Said`].
    pub fn said(compiled: &Compiled, said: Said, pod: Option<&Name>, direction: Direction) -> Self {
        Self::of(compiled, said.spoke, said.rule, pod.filter(|_| said.node.is_none()), direction)
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => {
                write!(f, "{} {}, {} ({})", kind_word(rule.kind), rule.policy, rule.place(), rule.position)
            }
            Self::LocalHost => f.write_str("the rule that a node reaches its own pods"),
            Self::NotIsolated => f.write_str("default: no policy isolates the pod in this direction"),
            Self::DefaultDeny(_) => f.write_str("default deny: no rule of the policies that isolate it matched"),
        }
    }
}

/// What a sentence calls a policy.
pub fn kind_word(kind: PolicyKind) -> &'static str {
    if kind == PolicyKind::NetworkPolicy { "policy" } else { kind.name() }
}

/// The whole answer.
#[derive(Debug)]
pub struct Explanation {
    /// The probe.
    pub probe: Probe,
    /// How it ended.
    pub outcome: Outcome,
    /// The same in one word.
    pub verdict: Verdict,
    /// Every stop.
    pub hops: Vec<Hop>,
    /// Every policy that was asked, in order.
    pub decisions: Vec<Decision>,
}

impl Cluster {
    /// Sends a probe and writes everything down.
    ///
    /// # Errors
    /// A fault of a program.
    pub fn explain(&mut self, probe: Probe) -> Result<Explanation, simulator_vm::RunError> {
        self.start_trail();
        let outcome = self.probe(&probe);
        let hops = self.take_trail();
        let decisions = self.decisions(&hops, probe.protocol);
        let outcome = outcome?;
        let verdict = self.verdict(&outcome);
        Ok(Explanation { probe, outcome, verdict, hops, decisions })
    }

    fn decisions(&self, hops: &[Hop], protocol: Protocol) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for hop in hops {
            let Some(node) = hop.node else { continue };
            for event in &hop.events {
                if EventKind::from_number(event.kind) != Some(EventKind::PolicyVerdict) {
                    continue;
                }
                let ingress = event.flags & datapath_abi::events::INGRESS != 0;
                let direction = if ingress { Direction::Ingress } else { Direction::Egress };
                let name = self.nic_of_endpoint(node, event.endpoint).map(|nic| nic.name.clone());
                let identity = if ingress { event.source_identity } else { event.destination_identity };
                let spoke = Spoke::of(event);
                let place = self.nodes().get(node).map(|node| node.name.clone()).unwrap_or_default();
                let by = match &name {
                    // No rule has decided: what isolates the node itself.
                    _ if event.endpoint == ids::HOST_ENDPOINT && event.rule == 0 && spoke != Spoke::Allow => {
                        By::DefaultDeny(self.compiled().isolating_node(&place, direction))
                    }
                    name => By::of(self.compiled(), spoke, event.rule, name.as_ref(), direction),
                };
                let proxies = match &by {
                    By::Rule(rule) if spoke == Spoke::Redirect => proxy::of_rule(self.model(), rule, Some(protocol)),
                    By::Rule(_) | By::LocalHost | By::NotIsolated | By::DefaultDeny(_) => Vec::new(),
                };
                // 1 stands for none.
                let proxy_port = u16::try_from(event.verdict).ok().filter(|port| *port > 1);
                decisions.push(Decision {
                    leg: hop.leg,
                    pod: match &name {
                        _ if event.endpoint == ids::HOST_ENDPOINT => format!("node/{place}"),
                        Some(name) => name.to_string(),
                        None => String::new(),
                    },
                    node: place,
                    direction,
                    peer: self.identity_text(identity),
                    spoke,
                    proxies,
                    proxy_port,
                    by,
                });
            }
        }
        decisions
    }

    /// An identity with whom it stands for.
    pub fn identity_text(&self, identity: u32) -> String {
        match self.identities().owner(identity) {
            Some(owner) => format!("{identity} ({})", owner_text(owner)),
            None => match agent_core::identity::reserved_name(identity) {
                Some(name) => format!("{identity} ({name})"),
                None => identity.to_string(),
            },
        }
    }
}

/// Whom an identity stands for, without what every identity has.
fn owner_text(owner: &Owner) -> String {
    match owner {
        Owner::Pods { namespace, .. } => {
            let all = owner.labels();
            let own = all.iter().filter_map(|label| {
                let label = label.strip_prefix("k8s:").unwrap_or(label);
                (!label.starts_with("io.")).then_some(label)
            });
            own.fold(format!("namespace {namespace}"), |text, label| format!("{text}, {label}"))
        }
        Owner::Prefix(prefix) => prefix.to_string(),
        Owner::Nodes(_) => owner.to_string(),
    }
}

/// A flow state, for people.
pub fn state_text(state: u8) -> &'static str {
    match FlowState::from_number(state) {
        Some(FlowState::New) => "new flow",
        Some(FlowState::Established) => "established flow",
        Some(FlowState::Reply) => "reply of a known flow",
        Some(FlowState::Related) => "error about a known flow",
        Some(FlowState::Unknown) | None => "flow not asked for",
    }
}

/// The outcome in a few words.
pub fn outcome_text(cluster: &Cluster, explanation: &Explanation) -> String {
    let outcome = &explanation.outcome;
    let packet = |leg: usize| match leg {
        0 => "the request",
        1 => "the answer",
        _ => "the third packet",
    };
    let name = |node: usize| cluster.nodes().get(node).map(|node| node.name.as_str()).unwrap_or_default();
    match outcome {
        Outcome::Allowed if explanation.verdict == Verdict::Audit => {
            "allowed, and a policy that only audits would have denied it: the request arrived, and the answer came back"
                .to_owned()
        }
        Outcome::Allowed => "allowed: the request arrived, and the answer came back".to_owned(),
        Outcome::Dropped { leg, drop } if explanation.verdict == Verdict::Redirect => {
            let proxies = cluster.proxies_of(outcome, explanation.probe.protocol);
            let kind = if proxies.is_empty() { String::new() } else { format!("{} ", proxy::words(&proxies)) };
            format!(
                "redirect: {} is for the {kind}proxy, which decides; there is none here, so it was dropped on {} at {} ({})",
                packet(*leg),
                name(drop.node),
                drop.hook.name(),
                drop.reason.map_or("no reason given", DropReason::name),
            )
        }
        Outcome::Dropped { leg, drop } => format!(
            "denied: {} was dropped on {} at {}: {} ({})",
            packet(*leg),
            name(drop.node),
            drop.hook.name(),
            drop.reason.map_or("no reason given", DropReason::name),
            drop.reason.map_or("", DropReason::text),
        ),
        Outcome::Lost { leg, node, lost } => {
            let place = node.map_or("outside", name);
            format!("denied: {} was lost {}{place}: {lost}", packet(*leg), if node.is_some() { "on " } else { "" })
        }
    }
}

/// A pod name or other party as the command line and scenarios write it.
///
/// # Errors
/// What would be right.
pub fn parse_party(text: &str) -> Result<Party, String> {
    if text == "world" {
        return Ok(Party::World);
    }
    if let Ok(address) = text.parse() {
        return Ok(Party::Address(address));
    }
    if text.starts_with("svc/") {
        return Err("services are not simulated yet".to_owned());
    }
    match text.split_once('/') {
        Some(("node", name)) if !name.is_empty() && !name.contains('/') => Ok(Party::Node(name.to_owned())),
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Party::Pod(Name::new(namespace, name)))
        }
        _ => Err("must be NAMESPACE/POD, node/NAME, an IP address or `world`".to_owned()),
    }
}
