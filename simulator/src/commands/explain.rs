//! `weir-sim explain`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use datapath_abi::{DropReason, EventKind};
use serde_json::{Value, json};

use super::{Failure, files, parse_port};
use crate::cluster::explain::{By, Decision, Explanation, outcome_text, parse_party, state_text};
use crate::cluster::{Cluster, EngineKind, Family, Hop, Options, Party, Protocol, maptext};

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
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let model = files::model(&args.manifests)?;
    let options = Options {
        engine: EngineKind::Checked,
        seed: args.seed,
        events: true,
        pcap: args.pcap.clone(),
        ..Options::default()
    };
    let mut cluster = Cluster::new(model, options)?;
    let probe = cluster
        .probe_between(&args.from, &args.to, args.port, args.family)
        .map_err(|error| Failure::Input(error.to_string()))?;
    let explanation = cluster.explain(probe)?;
    cluster.finish_captures()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", as_json(args, &cluster, &explanation))?;
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
    let _ = writeln!(out, "{}", outcome_text(cluster, &explanation.outcome));
    let last = explanation.decisions.iter().rposition(|decision| !decision.allowed);
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
    let verb = if decision.allowed { "allowed" } else { "denied" };
    let preposition = if decision.direction == agent_core::Direction::Ingress { "from" } else { "to" };
    let _ = writeln!(
        out,
        "{indent}{} of {} {preposition} identity {}: {verb} by {}",
        decision.direction,
        decision.pod,
        decision.peer,
        by_text(&decision.by, decision)
    );
    if let By::DefaultDeny(policies) = &decision.by {
        for policy in policies {
            let _ = writeln!(out, "{indent}  isolated by {} ({})", policy.name, policy.position);
        }
    }
}

fn by_text(by: &By, decision: &Decision) -> String {
    match by {
        By::Rule { policy, index, at } => format!("policy {policy}, {}[{index}] ({at})", decision.direction),
        By::LocalHost => "the rule that a node reaches its own pods".to_owned(),
        By::NotIsolated => "default: no policy isolates the pod in this direction".to_owned(),
        By::DefaultDeny(_) => "default deny: no rule of the policies that isolate it matched".to_owned(),
    }
}

fn hop_text(cluster: &Cluster, explanation: &Explanation, hop: &Hop, out: &mut String) {
    let node = hop.node.and_then(|node| cluster.nodes().get(node)).map_or("outside", |node| node.name.as_str());
    let hook = hop.hook.map_or(String::new(), |hook| format!(" {}", hook.name()));
    let place = if node == hop.place { String::new() } else { format!(" {}", hop.place) };
    let _ = writeln!(out, "  {node}{place}{hook}: {}", hop.verdict);
    let _ = writeln!(out, "    packet  {}", hop.before);
    if let Some(after) = &hop.after {
        let _ = writeln!(out, "    became  {after}");
    }
    for lookup in &hop.lookups {
        let value = lookup.value.as_deref().map_or("no entry".to_owned(), |value| maptext::value(&lookup.map, value));
        let _ = writeln!(out, "    {:8}{} → {value}", lookup.map, maptext::key(&lookup.map, &lookup.key));
    }
    if let Some(event) = hop.events.first() {
        let _ = writeln!(
            out,
            "    flow    {}, identity {} → {}",
            state_text(event.state),
            event.source_identity,
            event.destination_identity
        );
    }
    if hop.events.iter().any(|event| EventKind::from_number(event.kind) == Some(EventKind::PolicyVerdict)) {
        let here = |decision: &&Decision| decision.leg == hop.leg && decision.node == node;
        for decision in explanation.decisions.iter().filter(here) {
            decision_text(decision, "    policy  ", out);
        }
    }
    if hop.instructions != 0 {
        let _ = writeln!(out, "    cost    {} instructions, {} look-ups", hop.instructions, hop.lookups.len());
    }
}

fn as_json(args: &Args, cluster: &Cluster, explanation: &Explanation) -> Value {
    let (reason, at, node) = match &explanation.outcome {
        crate::cluster::Outcome::Allowed => (Value::Null, Value::Null, Value::Null),
        crate::cluster::Outcome::Dropped { drop, .. } => (
            drop.reason.map_or(Value::Null, |reason| Value::from(DropReason::name(reason))),
            Value::from(drop.at()),
            cluster.nodes().get(drop.node).map_or(Value::Null, |node| Value::from(node.name.as_str())),
        ),
        crate::cluster::Outcome::Lost { lost, node, .. } => (
            Value::from(lost.to_string()),
            Value::Null,
            node.and_then(|node| cluster.nodes().get(node)).map_or(Value::Null, |node| Value::from(node.name.as_str())),
        ),
    };
    json!({
        "from": args.from.to_string(),
        "to": args.to.to_string(),
        "protocol": args.port.name(),
        "port": args.port.port(),
        "source": explanation.probe.source.to_string(),
        "destination": explanation.probe.destination.to_string(),
        "allowed": explanation.outcome.allowed(),
        "reason": reason,
        "at": at,
        "node": node,
        "decisions": explanation.decisions.iter().map(decision_json).collect::<Vec<_>>(),
        "hops": explanation.hops.iter().map(|hop| hop_json(cluster, hop)).collect::<Vec<_>>(),
    })
}

fn decision_json(decision: &Decision) -> Value {
    let by = match &decision.by {
        By::Rule { policy, index, at } => json!({"rule": {"policy": policy, "index": index, "at": at}}),
        By::LocalHost => json!({"default": "node reaches its own pods"}),
        By::NotIsolated => json!({"default": "not isolated"}),
        By::DefaultDeny(policies) => json!({
            "isolatedBy": policies
                .iter()
                .map(|policy| json!({"policy": policy.name.to_string(), "at": policy.position.to_string()}))
                .collect::<Vec<_>>()
        }),
    };
    json!({
        "packet": leg_name(decision.leg),
        "node": decision.node,
        "pod": decision.pod,
        "direction": decision.direction.to_string(),
        "peer": decision.peer,
        "allowed": decision.allowed,
        "by": by,
    })
}

fn hop_json(cluster: &Cluster, hop: &Hop) -> Value {
    let lookups: Vec<Value> = hop
        .lookups
        .iter()
        .map(|lookup| {
            json!({
                "map": lookup.map,
                "key": maptext::key(&lookup.map, &lookup.key),
                "value": lookup.value.as_deref().map(|value| maptext::value(&lookup.map, value)),
            })
        })
        .collect();
    json!({
        "packet": leg_name(hop.leg),
        "node": hop.node.and_then(|node| cluster.nodes().get(node)).map(|node| node.name.as_str()),
        "device": hop.place,
        "hook": hop.hook.map(datapath_abi::Hook::name),
        "timeNs": hop.now_ns,
        "before": hop.before,
        "after": hop.after,
        "verdict": hop.verdict,
        "lookups": lookups,
        "instructions": hop.instructions,
    })
}
