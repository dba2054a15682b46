//! `weir-sim explain`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use agent_core::policy::Proxy;
use datapath_abi::{Direction, DropReason, EventKind, MapId};
use serde::Serialize;

use super::{Failure, files, parse_port};
use crate::cluster::explain::{By, Decision, Explanation, outcome_text, parse_party, state_text};
use crate::cluster::trail::Lookup;
use crate::cluster::why::Spoke;
use crate::cluster::{Cluster, EngineKind, Family, Hop, Options, Outcome, Party, Protocol, TICKS_PER_SECOND, proxy};
use crate::engines::ticks;
use crate::report::NO_POLICY;
use crate::scenario::{Clock, key_text, value_text};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kubernetes manifests: files, folders, or `-` for standard input.
    #[arg(required = true)]
    manifests: Vec<PathBuf>,
    /// Sender: NAMESPACE/POD, node/NAME, an IP address or `world`.
    #[arg(long, value_parser = parse_party)]
    from: Party,
    /// Receiver, as the sender.
    #[arg(long, value_parser = parse_party)]
    to: Party,
    /// Port and protocol, as 80/TCP, 53/UDP, 9/SCTP or ICMP.
    #[arg(long, value_name = "PORT/PROTOCOL", value_parser = parse_port)]
    port: Protocol,
    /// Address family. Default: IPv4 where both ends have it.
    #[arg(long, ignore_case = true)]
    family: Option<Family>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Seed of everything that is left to chance (ports, tags).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what crossed every link into this folder, one pcapng file each.
    #[arg(long, value_name = "DIR")]
    pcap: Option<PathBuf>,
    #[command(flatten)]
    settings: super::settings::Args,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let config = args.settings.read(None)?;
    let model = files::model(&args.manifests, &config)?;
    let options = config.options(Options {
        engine: EngineKind::Checked,
        seed: args.seed,
        events: true,
        pcap: args.pcap.clone(),
        ..Options::default()
    });
    let mut cluster = Cluster::new(model, options)?;
    let probe = cluster
        .probe_between(&args.from, &args.to, args.port, args.family)
        .map_err(|error| Failure::Input(error.to_string()))?;
    let explanation = cluster.explain(probe)?;
    cluster.finish_captures()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", super::to_json(&as_json(args, &cluster, &explanation))?)?;
    } else {
        write!(out, "{}", text(args, &cluster, &explanation))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn leg_name(leg: usize) -> &'static str {
    match leg {
        0 => "request",
        1 => "answer",
        _ => "third packet",
    }
}

fn text(args: &Args, cluster: &Cluster, explanation: &Explanation) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} → {} {}", args.from, args.to, args.port);
    let _ = writeln!(out, "{}", outcome_text(cluster, explanation));
    let last = explanation.decisions.iter().rposition(|decision| !decision.spoke.passes());
    for (index, decision) in explanation.decisions.iter().enumerate() {
        if last.is_none_or(|last| last == index) {
            decision_text(decision, "", &mut out);
        }
    }
    let mut leg = None;
    for hop in &explanation.hops {
        if leg != Some(hop.leg) {
            leg = Some(hop.leg);
            let _ = writeln!(out, "\n{}", leg_name(hop.leg));
        }
        hop_text(cluster, explanation, hop, &mut out);
    }
    out
}

fn decision_text(decision: &Decision, indent: &str, out: &mut String) {
    let verb = match decision.spoke {
        Spoke::Allow => "allowed".to_owned(),
        Spoke::Deny => "denied".to_owned(),
        Spoke::Redirect => {
            let kind = proxy::words(&decision.proxies);
            let space = if kind.is_empty() { "" } else { " " };
            match decision.proxy_port {
                Some(port) => format!("redirected to the {kind}{space}proxy (port {port})"),
                None => format!("redirected to the {kind}{space}proxy (there is none here)"),
            }
        }
        Spoke::Audit => "allowed, because the policy only audits, though denied".to_owned(),
    };
    let preposition = if decision.direction == agent_core::Direction::Ingress { "from" } else { "to" };
    let _ = writeln!(
        out,
        "{indent}{} of {} {preposition} identity {}: {verb} by {}",
        decision.direction, decision.pod, decision.peer, decision.by
    );
    if let By::DefaultDeny(policies) = &decision.by {
        if policies.is_empty() {
            let _ = writeln!(out, "{:width$}isolated by {NO_POLICY}", "", width = indent.len() + 2);
        }
        for policy in policies {
            let _ = writeln!(
                out,
                "{:width$}isolated by {} ({})",
                "",
                policy.name,
                policy.position,
                width = indent.len() + 2
            );
        }
    }
}

fn hop_text(cluster: &Cluster, explanation: &Explanation, hop: &Hop, out: &mut String) {
    let node = hop.node.and_then(|node| cluster.nodes().get(node)).map_or("outside", |node| node.name.as_str());
    let hook = hop.hook.map_or(String::new(), |hook| format!(" {}", hook.name()));
    let place = if node == hop.place { String::new() } else { format!(" {}", hop.place) };
    let _ = writeln!(out, "  {node}{place}{hook}: {}", hop.verdict);
    let _ = writeln!(out, "    packet    {}", hop.before);
    if let Some(after) = &hop.after {
        let _ = writeln!(out, "    became    {after}");
    }
    for lookup in &hop.lookups {
        let (key, value) = lookup_text(lookup, hop.now_ns);
        let _ = writeln!(out, "    {:9} {key} → {}", lookup.map, value.unwrap_or_else(|| "no entry".to_owned()));
    }
    if let Some(event) = hop.events.first() {
        let _ = writeln!(
            out,
            "    flow      {}, identity {} → {}",
            state_text(event.state),
            event.source_identity,
            event.destination_identity
        );
    }
    if hop.events.iter().any(|event| EventKind::from_number(event.kind) == Some(EventKind::PolicyVerdict)) {
        let here = |decision: &&Decision| decision.leg == hop.leg && decision.node == node;
        for decision in explanation.decisions.iter().filter(here) {
            decision_text(decision, "    rule      ", out);
        }
    }
    if hop.instructions != 0 {
        let _ = writeln!(out, "    cost      {} instructions, {} look-ups", hop.instructions, hop.lookups.len());
    }
}

/// What the index of a counter means.
fn metrics_text(key: &[u8]) -> Option<String> {
    let [reason, direction, _, _] = *<&[u8; 4]>::try_from(key).ok()?;
    let direction = if direction == Direction::Ingress as u8 { "ingress" } else { "egress" };
    let reason = DropReason::from_number(reason).map_or("forwarded", DropReason::name);
    Some(format!("{direction} {reason}"))
}

/// A look-up's key, and the value if there was one.
fn lookup_text(lookup: &Lookup, now_ns: u64) -> (String, Option<String>) {
    let clock = Clock { now: ticks(now_ns, TICKS_PER_SECOND), per_second: TICKS_PER_SECOND };
    match MapId::from_name(&lookup.map) {
        Some(map) => {
            let text = |value: &Vec<u8>| {
                if map == MapId::Metrics { "counted".to_owned() } else { value_text(map, &lookup.key, value, &clock) }
            };
            let value = lookup.value.as_ref().map(text);
            let key = match (map, metrics_text(&lookup.key)) {
                (MapId::Metrics, Some(text)) => text,
                // One key for both directions of a flow: its ends have an order, not a direction.
                _ => key_text(map, &lookup.key).replace(" > ", " ↔ "),
            };
            (key, value)
        }
        None => (format!("{:02x?}", lookup.key), lookup.value.as_ref().map(|value| format!("{value:02x?}"))),
    }
}

#[derive(Serialize)]
struct Json<'a> {
    from: String,
    to: String,
    protocol: &'static str,
    port: Option<u16>,
    source: String,
    destination: String,
    /// `allow`, `audit`, `redirect`, `deny`.
    verdict: &'static str,
    /// Request and answer arrived.
    allowed: bool,
    /// Of a redirect: `dns`, `http`, `tls`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proxies: Vec<&'static str>,
    reason: Option<String>,
    at: Option<&'static str>,
    node: Option<&'a str>,
    decisions: Vec<DecisionJson<'a>>,
    hops: Vec<HopJson<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionJson<'a> {
    packet: &'static str,
    node: &'a str,
    pod: &'a str,
    direction: String,
    peer: &'a str,
    allowed: bool,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proxies: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_port: Option<u16>,
    by: ByJson,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum ByJson {
    Rule { kind: &'static str, policy: String, list: &'static str, spec: Option<usize>, index: usize, at: String },
    Default(&'static str),
    IsolatedBy(Vec<PolicyJson>),
}

#[derive(Serialize)]
struct PolicyJson {
    policy: String,
    at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HopJson<'a> {
    packet: &'static str,
    node: Option<&'a str>,
    device: &'a str,
    hook: Option<&'static str>,
    time_ns: u64,
    before: &'a str,
    after: Option<&'a str>,
    verdict: &'a str,
    lookups: Vec<LookupJson<'a>>,
    instructions: u64,
}

#[derive(Serialize)]
struct LookupJson<'a> {
    map: &'a str,
    key: String,
    value: Option<String>,
}

fn as_json<'a>(args: &Args, cluster: &'a Cluster, explanation: &'a Explanation) -> Json<'a> {
    let name = |node: usize| cluster.nodes().get(node).map(|node| node.name.as_str());
    let (reason, at, node) = match &explanation.outcome {
        Outcome::Allowed => (None, None, None),
        Outcome::Dropped { drop, .. } => {
            (drop.reason.map(|reason| DropReason::name(reason).to_owned()), Some(drop.at()), name(drop.node))
        }
        Outcome::Lost { lost, node, .. } => (Some(lost.to_string()), None, node.and_then(name)),
    };
    Json {
        from: args.from.to_string(),
        to: args.to.to_string(),
        protocol: args.port.name(),
        port: args.port.port(),
        source: explanation.probe.source.to_string(),
        destination: explanation.probe.destination.to_string(),
        verdict: explanation.verdict.name(),
        allowed: explanation.outcome.allowed(),
        proxies: names(&cluster.proxies_of(&explanation.outcome, args.port)),
        reason,
        at,
        node,
        decisions: explanation.decisions.iter().map(decision_json).collect(),
        hops: explanation.hops.iter().map(|hop| hop_json(hop, hop.node.and_then(name))).collect(),
    }
}

fn names(proxies: &[Proxy]) -> Vec<&'static str> {
    proxies.iter().map(|own| proxy::name(*own)).collect()
}

fn decision_json(decision: &Decision) -> DecisionJson<'_> {
    let by = match &decision.by {
        By::Rule(rule) => ByJson::Rule {
            kind: rule.kind.name(),
            policy: rule.policy.to_string(),
            list: rule.list.name(),
            spec: rule.spec,
            index: rule.index,
            at: rule.position.to_string(),
        },
        By::LocalHost => ByJson::Default("a node reaches its own pods"),
        By::NotIsolated => ByJson::Default("not isolated"),
        By::DefaultDeny(policies) => ByJson::IsolatedBy(
            policies
                .iter()
                .map(|policy| PolicyJson { policy: policy.name.to_string(), at: policy.position.to_string() })
                .collect(),
        ),
    };
    DecisionJson {
        packet: leg_name(decision.leg),
        node: &decision.node,
        pod: &decision.pod,
        direction: decision.direction.to_string(),
        peer: &decision.peer,
        allowed: decision.spoke.passes(),
        verdict: decision.spoke.name(),
        proxies: names(&decision.proxies),
        proxy_port: decision.proxy_port,
        by,
    }
}

fn hop_json<'a>(hop: &'a Hop, node: Option<&'a str>) -> HopJson<'a> {
    let lookups = hop.lookups.iter().map(|lookup| {
        let (key, value) = lookup_text(lookup, hop.now_ns);
        LookupJson { map: &lookup.map, key, value }
    });
    HopJson {
        packet: leg_name(hop.leg),
        node,
        device: &hop.place,
        hook: hop.hook.map(datapath_abi::Hook::name),
        time_ns: hop.now_ns,
        before: &hop.before,
        after: hop.after.as_deref(),
        verdict: &hop.verdict,
        lookups: lookups.collect(),
        instructions: hop.instructions,
    }
}
