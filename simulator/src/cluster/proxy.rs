//! Which proxy a rule hands packets to. The datapath's events name the rule; what the rule asks for is in the policy.

use agent_core::Model;
use agent_core::model::PortSelector;
use agent_core::model::cilium::{CiliumPort, Inspect};
use agent_core::policy::{List, Proxy, RuleInfo};

use super::{Cluster, Outcome, Protocol};

/// Every kind of proxy.
pub const ALL: [Proxy; 3] = [Proxy::Http, Proxy::Dns, Proxy::Tls];

/// As files and JSON write it.
pub const fn name(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Dns => "dns",
        Proxy::Http => "http",
        Proxy::Tls => "tls",
    }
}

/// As sentences write it.
pub const fn word(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Dns => "DNS",
        Proxy::Http => "HTTP",
        Proxy::Tls => "TLS",
    }
}

/// The proxies that a rule asks for, each once: for one port, or (`None`, or where only a port's name says which) for all.
pub fn of_rule(model: &Model, rule: &RuleInfo, protocol: Option<Protocol>) -> Vec<Proxy> {
    let Some(policy) = model.cilium_policies().get(&rule.policy) else { return Vec::new() };
    let Some(spec) = policy.specs.iter().find(|spec| spec.index == rule.spec) else { return Vec::new() };
    let list = match rule.list {
        List::Ingress => &spec.ingress,
        List::IngressDeny => &spec.ingress_deny,
        List::Egress => &spec.egress,
        List::EgressDeny => &spec.egress_deny,
    };
    let ports = || list.get(rule.index).into_iter().flat_map(|rule| &rule.ports);
    let of = |fits: &dyn Fn(&CiliumPort) -> bool| {
        let mut found: Vec<Proxy> =
            ports().filter(|port| fits(port)).filter_map(|port| port.inspect.as_ref()).map(kind).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let exact = protocol.map(|protocol| of(&|port| takes(port, protocol))).unwrap_or_default();
    if exact.is_empty() { of(&|_| true) } else { exact }
}

fn kind(inspect: &Inspect) -> Proxy {
    match inspect {
        Inspect::Http(_) => Proxy::Http,
        Inspect::Dns(_) => Proxy::Dns,
        Inspect::Tls(_) => Proxy::Tls,
    }
}

fn takes(port: &CiliumPort, protocol: Protocol) -> bool {
    let (number, wanted) = match protocol {
        Protocol::Tcp(port) => (6, port),
        Protocol::Udp(port) => (17, port),
        Protocol::Sctp(port) => (132, port),
        // No proxy looks at ICMP.
        Protocol::Icmp(_) => return false,
    };
    let within = match &port.ports {
        PortSelector::All => true,
        PortSelector::Range(first, last) => (first..=last).contains(&&wanted),
        PortSelector::Named(_) => false,
    };
    port.protocols.contains(&number) && within
}

impl Cluster {
    /// The proxies that an outcome asks for; none: it is no redirect.
    pub fn proxies_of(&self, outcome: &Outcome, protocol: Protocol) -> Vec<Proxy> {
        let rule = outcome.redirected().and_then(|drop| self.compiled().rules().get(drop.rule));
        rule.map(|rule| of_rule(self.model(), rule, Some(protocol))).unwrap_or_default()
    }
}

/// Several of them in a sentence: `HTTP`, `DNS or HTTP`.
pub fn words(proxies: &[Proxy]) -> String {
    proxies.iter().map(|proxy| word(*proxy)).collect::<Vec<_>>().join(" or ")
}
