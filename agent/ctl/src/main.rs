//! `weir`: the operator's command line, on the socket of the agent of this node.
#![forbid(unsafe_code)]

mod client;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use agent_api::{
    Address, Counter, Endpoint, Event, EventKind, Filter, Flow, Identity, Line, PolicyEntry, Request, Status,
};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use client::{Client, Failed};
use table::Table;

/// Asks and instructs the agent of this node.
///
/// Exit codes: 0 as expected, 1 the agent is not healthy or failed, 2 the call is wrong.
#[derive(Debug, Parser)]
#[command(name = "weir", version)]
struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, value_name = "PATH", default_value = agent_api::SOCKET)]
    socket: PathBuf,
    /// Writes JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How the agent is; exit code 1 when something is not as it should be.
    Status,
    /// The pods of this node.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// Security identities.
    #[command(subcommand)]
    Identity(ListCommand),
    /// Policy entries in the kernel.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Owners of addresses in the kernel.
    #[command(subcommand)]
    Ipcache(ListCommand),
    /// Flows in the kernel.
    #[command(subcommand)]
    Ct(ListCommand),
    /// Counters in the kernel.
    Metrics,
    /// Drops, traces and verdicts as they happen, until ^C.
    Monitor {
        /// Only these kinds.
        #[arg(long = "type", value_name = "KIND", value_delimiter = ',')]
        kinds: Vec<Kind>,
        /// Only from or to this pod; `NS/`: any pod of a namespace.
        #[arg(long, value_name = "NS/NAME")]
        pod: Option<String>,
        /// Only with these outcomes: drop reasons, `allowed`, or where a trace leads.
        #[arg(long = "reason", value_name = "NAME", value_delimiter = ',')]
        reasons: Vec<String>,
        /// Only of these protocols.
        #[arg(long = "protocol", value_name = "NAME", value_delimiter = ',')]
        protocols: Vec<String>,
        /// Only from or to these ports.
        #[arg(long = "port", value_name = "NUMBER", value_delimiter = ',')]
        ports: Vec<u16>,
        /// Only in this direction, seen from the pod.
        #[arg(long)]
        direction: Option<Direction>,
    },
    /// Writes a script that completes `weir` in a shell: `source <(weir completions bash)`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// All of them.
    List,
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Number, NAMESPACE/NAME, address, or the node's device.
        endpoint: String,
    },
    /// Connects a pod: makes its device and attaches the datapath.
    Add {
        /// The pod, NAMESPACE/NAME.
        #[arg(long)]
        pod: String,
        /// File of its network namespace.
        #[arg(long, value_name = "PATH")]
        netns: String,
        /// Name of its device.
        #[arg(long, default_value = "eth0")]
        ifname: String,
        /// The node's end of a veth pair that is there already; otherwise a pair is made.
        #[arg(long, value_name = "NAME")]
        device: Option<String>,
    },
    /// Disconnects a pod.
    Delete {
        /// Number, NAMESPACE/NAME, address, or the node's device.
        endpoint: String,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Entries of one endpoint, with the rule that made each.
    Get {
        /// Number, NAMESPACE/NAME, address, or the node's device.
        endpoint: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Drop,
    Trace,
    Verdict,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Direction {
    Ingress,
    Egress,
}

fn run(arguments: Arguments) -> Result<bool, Failed> {
    if let Command::Completions { shell } = arguments.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut script);
        io::stdout().write_all(&script)?;
        return Ok(true);
    }
    let mut client = Client::connect(&arguments.socket)?;
    let json = arguments.json;
    let mut out = io::stdout().lock();
    match arguments.command {
        Command::Status => {
            let status: Status = client.ask(&Request::Status {})?;
            show(&mut out, json, &status, status_text)?;
            return Ok(status.healthy);
        }
        Command::Endpoint(EndpointCommand::List) => {
            let endpoints: Vec<Endpoint> = client.ask(&Request::EndpointList {})?;
            show(&mut out, json, &endpoints, |endpoints| endpoint_table(endpoints))?;
        }
        Command::Endpoint(EndpointCommand::Get { endpoint }) => {
            let endpoint: Endpoint = client.ask(&Request::EndpointGet { endpoint })?;
            show(&mut out, json, &endpoint, endpoint_text)?;
        }
        Command::Endpoint(EndpointCommand::Add { pod, netns, ifname, device }) => {
            // The agent has a working directory of its own.
            let netns = std::path::absolute(&netns)?.display().to_string();
            let endpoint: Endpoint = client.ask(&Request::EndpointAdd { pod, netns, ifname, device })?;
            show(&mut out, json, &endpoint, endpoint_text)?;
        }
        Command::Endpoint(EndpointCommand::Delete { endpoint }) => {
            let gone: Endpoint = client.ask(&Request::EndpointDelete { endpoint })?;
            show(&mut out, json, &gone, |gone| format!("endpoint {} of {} is gone\n", gone.id, gone.pod))?;
        }
        Command::Identity(ListCommand::List) => {
            let identities: Vec<Identity> = client.ask(&Request::IdentityList {})?;
            show(&mut out, json, &identities, |identities| {
                let mut table = Table::new(["ID", "LABELS"]);
                for identity in identities {
                    table.row([identity.id.to_string(), identity.labels.join(" ")]);
                }
                table.to_string()
            })?;
        }
        Command::Policy(PolicyCommand::Get { endpoint }) => {
            let entries: Vec<PolicyEntry> = client.ask(&Request::PolicyGet { endpoint })?;
            show(&mut out, json, &entries, |entries| policy_table(entries))?;
        }
        Command::Ipcache(ListCommand::List) => {
            let addresses: Vec<Address> = client.ask(&Request::IpcacheList {})?;
            show(&mut out, json, &addresses, |addresses| ipcache_table(addresses))?;
        }
        Command::Ct(ListCommand::List) => {
            let flows: Vec<Flow> = client.ask(&Request::CtList {})?;
            show(&mut out, json, &flows, |flows| flow_table(flows))?;
        }
        Command::Metrics => {
            let counters: Vec<Counter> = client.ask(&Request::Metrics {})?;
            show(&mut out, json, &counters, |counters| {
                let mut table = Table::new(["DIRECTION", "REASON", "PACKETS", "BYTES", ""]);
                for counter in counters {
                    let (packets, bytes) = (counter.packets.to_string(), counter.bytes.to_string());
                    let text = counter.text.clone();
                    table.row([counter.direction.clone(), counter.reason.clone(), packets, bytes, text]);
                }
                table.to_string()
            })?;
        }
        // Done above, without an agent.
        Command::Completions { .. } => {}
        Command::Monitor { kinds, pod, reasons, protocols, ports, direction } => {
            let kinds = kinds.into_iter().map(|kind| match kind {
                Kind::Drop => EventKind::Drop,
                Kind::Trace => EventKind::Trace,
                Kind::Verdict => EventKind::Verdict,
            });
            let direction = direction.map(|direction| match direction {
                Direction::Ingress => "ingress".to_owned(),
                Direction::Egress => "egress".to_owned(),
            });
            let filter = Filter { kinds: kinds.collect(), pod, reasons, protocols, ports, direction };
            let () = client.ask(&Request::Monitor(filter))?;
            loop {
                let line: Line = client.next()?;
                show(&mut out, json, &line, |line| match line {
                    Line::Event(event) => event_text(event),
                    Line::Lost(lost) => format!("({lost} events were left out: this terminal is too slow)\n"),
                })?;
                out.flush()?;
            }
        }
    }
    Ok(true)
}

fn show<T: serde::Serialize>(
    out: &mut impl Write,
    json: bool,
    value: &T,
    text: impl Fn(&T) -> String,
) -> Result<(), Failed> {
    if json {
        serde_json::to_writer(&mut *out, value)?;
        out.write_all(b"\n")?;
    } else {
        out.write_all(text(value).as_bytes())?;
    }
    Ok(())
}

fn status_text(status: &Status) -> String {
    let source = &status.source;
    let mut lines = vec![
        format!(
            "weir-agent {} on {}: {}",
            status.version,
            status.node,
            if status.healthy { "healthy" } else { "NOT HEALTHY" }
        ),
        format!("objects    {} in {} files of {}", source.objects, source.files, source.directory),
    ];
    lines
        .extend(source.error.iter().map(|error| format!("           wrong, the last good ones are in force: {error}")));
    match status.last_pass {
        Some(pass) => {
            lines.push(format!("maps       {} changes in {} µs by the last objects", pass.changes, pass.micros))
        }
        None => lines.push("maps       not made yet".to_owned()),
    }
    lines.extend(status.reconcile_error.iter().map(|error| format!("           {error}")));
    lines.push(format!("endpoints  {} of {} in the maps", status.endpoints.1, status.endpoints.0));
    lines.extend(status.waiting.iter().map(|why| format!("           {why}")));
    let protocol = status.tunnel_protocol.iter().map(|protocol| format!(" ({protocol})")).collect::<String>();
    lines.push(format!("routing    {}{protocol}, MTU {}", status.routing, status.mtu));
    lines.extend(status.problems.iter().map(|why| format!("           {why}")));
    lines.push(format!("programs   attached by {}, pinned in {}", status.attach, status.bpffs));
    lines.extend(status.attached.iter().map(|device| format!("           {device}")));
    lines.push(format!("flows      {} at the last sweep, {} of them expired", status.flows.0, status.flows.1));
    lines.push(format!("events     {} lost", status.events_lost));
    lines.join("\n") + "\n"
}

fn endpoint_table(endpoints: &[Endpoint]) -> String {
    let mut table = Table::new(["ID", "POD", "ADDRESSES", "IDENTITY", "DEVICE", "ISOLATED", "STATE"]);
    for endpoint in endpoints {
        let directions = [("ingress", &endpoint.ingress_policies), ("egress", &endpoint.egress_policies)];
        let isolated: Vec<&str> =
            directions.iter().filter(|(_, policies)| !policies.is_empty()).map(|(name, _)| *name).collect();
        table.row([
            endpoint.id.to_string(),
            endpoint.pod.clone(),
            endpoint.addresses.join(" "),
            identities(endpoint),
            endpoint.device.clone(),
            isolated.join(" "),
            endpoint.state.clone(),
        ]);
    }
    table.to_string()
}

fn identities(endpoint: &Endpoint) -> String {
    let mut all = endpoint.identities.clone();
    all.dedup();
    all.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn endpoint_text(endpoint: &Endpoint) -> String {
    let policies = |policies: &[String]| match policies {
        [] => "everything is allowed".to_owned(),
        some => format!("isolated by {}", some.join(", ")),
    };
    format!(
        "endpoint   {}\npod        {}\nstate      {}\naddresses  {}\nidentity   {}\ndevice     {} ({})\nmac        {}\n\
         ingress    {}\negress     {}\n",
        endpoint.id,
        endpoint.pod,
        endpoint.state,
        endpoint.addresses.join(" "),
        identities(endpoint),
        endpoint.device,
        endpoint.ifindex,
        endpoint.mac,
        policies(&endpoint.ingress_policies),
        policies(&endpoint.egress_policies),
    )
}

fn policy_table(entries: &[PolicyEntry]) -> String {
    let mut table = Table::new(["DIRECTION", "VERDICT", "PROTOCOL", "PORTS", "IDENTITY", "PEER", "RULE"]);
    for entry in entries {
        let ports = match entry.ports {
            None => "any".to_owned(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        };
        table.row([
            entry.direction.clone(),
            entry.verdict.clone(),
            entry.protocol.clone(),
            ports,
            entry.identity.to_string(),
            entry.peer.clone(),
            entry.rule.clone(),
        ]);
    }
    table.to_string()
}

fn ipcache_table(addresses: &[Address]) -> String {
    let mut table = Table::new(["ADDRESS", "IDENTITY", "OWNER", "ENDPOINT", "NODE"]);
    for address in addresses {
        let endpoint = if address.endpoint == 0 { String::new() } else { address.endpoint.to_string() };
        let node = address.node.clone().unwrap_or_default();
        table.row([address.prefix.clone(), address.identity.to_string(), address.owner.clone(), endpoint, node]);
    }
    table.to_string()
}

fn flow_table(flows: &[Flow]) -> String {
    let mut table = Table::new(["PROTOCOL", "CLIENT", "POD", "SERVER", "POD", "STATE", "EXPIRES", "ACCEPTED BY"]);
    for flow in flows {
        table.row([
            flow.protocol.clone(),
            flow.client.clone(),
            flow.client_pod.clone().unwrap_or_default(),
            flow.server.clone(),
            flow.server_pod.clone().unwrap_or_default(),
            flow.state.clone(),
            format!("{} s", flow.expires_seconds),
            flow.accepted.join(" "),
        ]);
    }
    table.to_string()
}

/// One line of `monitor`.
fn event_text(event: &Event) -> String {
    let (seconds, millis) = (event.time_ns / 1_000_000_000 % 86_400, event.time_ns / 1_000_000 % 1000);
    let time = format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let kind = match event.kind {
        EventKind::Drop => "DROP   ",
        EventKind::Trace => "trace  ",
        EventKind::Verdict => "verdict",
    };
    let end = |peer: &agent_api::Peer| {
        let name = if peer.name.is_empty() { String::new() } else { format!(" ({})", peer.name) };
        match peer.address.contains(':') {
            true => format!("[{}]:{}{name}", peer.address, peer.port),
            false => format!("{}:{}{name}", peer.address, peer.port),
        }
    };
    let packet = match event.protocol.as_str() {
        "" => "not IP".to_owned(),
        protocol => {
            let words = [protocol, event.tcp_flags.as_str(), event.state.as_str()];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            format!("{} > {} {}", end(&event.source), end(&event.destination), words.join(" "))
        }
    };
    let rule = event.rule.as_ref().map(|rule| format!(": {}", rule.text)).unwrap_or_default();
    let outcome = match event.kind {
        EventKind::Drop | EventKind::Verdict => format!("{} {}", event.direction, event.outcome),
        EventKind::Trace => event.outcome.clone(),
    };
    format!("{time} {kind} {:<14} {packet} {outcome}{rule}\n", event.hook)
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // The reader of our output has gone: nobody is left to be told.
        Err(Failed::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error}");
            ExitCode::from(if error.is_input() { 2 } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::{Peer, Rule};

    #[test]
    fn an_event_is_one_line_with_names_and_the_rule() {
        let peer =
            |address: &str, port, name: &str| Peer { address: address.into(), port, identity: 256, name: name.into() };
        let event = Event {
            time_ns: 3_723_004_000_000,
            kind: EventKind::Drop,
            hook: "from_container".into(),
            ifindex: 7,
            direction: "ingress".into(),
            endpoint: 2,
            protocol: "TCP".into(),
            tcp_flags: "SYN".into(),
            len: 74,
            source: peer("10.0.0.1", 40000, "x/a"),
            destination: peer("fd00::2", 80, "x/b"),
            state: "new".into(),
            outcome: "PolicyNoMatch".into(),
            text: String::new(),
            rule: Some(Rule { id: 0, text: "no rule of x/deny (p.yaml:3)".into() }),
        };
        assert_eq!(
            event_text(&event),
            "01:02:03.004 DROP    from_container 10.0.0.1:40000 (x/a) > [fd00::2]:80 (x/b) TCP SYN new ingress \
             PolicyNoMatch: no rule of x/deny (p.yaml:3)\n"
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
