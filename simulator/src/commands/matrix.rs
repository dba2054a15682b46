//! `weir-sim matrix`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent_core::Model;
use serde::{Deserialize, Serialize};

use super::ask::{ask, once, parties};
use super::{Failure, files, parse_port};
use crate::cluster::matrix::{Answer, Cell, Matrix, Question, declared_ports, of};
use crate::cluster::{EngineKind, Family, Options, Party, Protocol, Verdict};
use crate::report::alike::Version;
use crate::report::junit::{self, Case};
use crate::report::{Book, page};

/// What `--help` says at its end.
const NOTES: &str = "Workloads become pods NAME-0, NAME-1, ...; without Node objects there are two nodes; missing \
addresses are filled in. `world` is one host outside: 203.0.113.7, over IPv6 2001:db8::7. Nodes are among the ends if \
policies are about nodes, or with --nodes. Allowed means that the request arrived and that the answer came back.

--json prints {\"endpoints\": [NAME, ...], \"tables\": [{\"port\": \"80/TCP\", \"rows\": [TEXT, ...]}]}: one text for each \
sender, one letter for each receiver, both in the order of the endpoints:

    1   allow
    a   allow, and a policy that only audits would have denied it
    r   redirect: a rule hands it to a proxy, which decides; here there is none, and nothing arrives
    0   deny
    .   not asked: an endpoint to itself

Exit code 0: as expected, or nothing was expected. 1: a verdict is not that of --expect. 2: wrong input.";

#[derive(Debug, clap::Args)]
#[command(after_long_help = NOTES)]
pub struct Args {
    /// Kubernetes manifests: files, folders, or `-` for standard input.
    #[arg(required = true)]
    manifests: Vec<PathBuf>,
    /// Port to ask for, as 80/TCP, 53/UDP, 9/SCTP or ICMP; may be given several times. Default: all that pods declare.
    #[arg(long = "port", value_name = "PORT/PROTOCOL", value_parser = parse_port)]
    ports: Vec<Protocol>,
    /// Address family. Default: IPv4 where both ends have it.
    #[arg(long, ignore_case = true)]
    family: Option<Family>,
    /// Ask nodes too. Without this they are asked if a policy is about nodes.
    #[arg(long)]
    nodes: bool,
    /// Print JSON; see below.
    #[arg(long)]
    json: bool,
    /// Also write a page for people: a heat map with the rule behind every verdict. It needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with this earlier output of --json; exit code 1 if a verdict differs.
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Write a JUnit report of the comparison, one case for each port.
    #[arg(long, value_name = "FILE", requires = "expect")]
    junit: Option<PathBuf>,
    /// What runs the bytecode.
    #[arg(long, value_enum, default_value_t)]
    engine: EngineKind,
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
    let start = Instant::now();
    let config = args.settings.read(None)?;
    let model = files::model(&args.manifests, &config)?;
    let ports = if args.ports.is_empty() { declared_ports(&model) } else { args.ports.clone() };
    if ports.is_empty() {
        return Err(Failure::Input("no pod declares a port; say which to ask for: --port 80/TCP".to_owned()));
    }
    let (ports, parties) = (once(ports), parties(&[&model], args.nodes));
    let options = config.options(Options {
        engine: args.engine,
        seed: args.seed,
        verdicts: args.html.is_some(),
        pcap: args.pcap.clone(),
        ..Options::default()
    });
    let expected = args.expect.as_deref().map(read_expected).transpose()?;
    let question = Question {
        model: &model,
        options: &options,
        parties: &parties,
        ports: &ports,
        wanted: None,
        class: None,
        family: args.family,
        threads: 1,
    };
    let answer = ask(question, "")?;
    if let Some(path) = &args.html {
        let version = Version::new(model.clone(), config).map_err(|error| Failure::Input(error.to_string()))?;
        let book = Book::of(&version, &parties);
        let page = page::write(&answer.matrix, &book).map_err(|error| Failure::Output(error.into()))?;
        std::fs::write(path, page).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    }
    let mut out = std::io::stdout().lock();
    if let Some(expected) = expected {
        let got = json(&answer.matrix);
        let differences = differences(&expected, &got);
        differences.iter().try_for_each(|one| writeln!(out, "{}", one.text))?;
        if let Some(path) = &args.junit {
            let report = junit::write("weir-sim matrix", &cases(&got, &differences));
            std::fs::write(path, report).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
        }
        return Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if args.json {
        writeln!(out, "{}", super::to_json(&json(&answer.matrix))?)?;
    } else {
        write!(out, "{}", text(&model, &answer, args.ports.is_empty(), start.elapsed()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The contract's JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    endpoints: Vec<String>,
    tables: Vec<TableJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableJson {
    port: String,
    rows: Vec<String>,
}

fn json(matrix: &Matrix) -> Json {
    let row = |row: &Vec<Cell>| row.iter().map(|cell| cell.letter()).collect();
    Json {
        endpoints: matrix.endpoints.iter().map(Party::to_string).collect(),
        tables: matrix
            .tables
            .iter()
            .map(|table| TableJson { port: table.port.to_string(), rows: table.rows.iter().map(row).collect() })
            .collect(),
    }
}

fn read_expected(path: &Path) -> Result<Json, Failure> {
    let name = files::shown(path);
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::Input(format!("{name}: not what `weir-sim matrix --json` prints: {error}")))
}

/// Something that is not as expected.
struct Difference {
    /// The port it is about; `None`: an endpoint that only one side has.
    port: Option<String>,
    text: String,
}

/// Every verdict that is not as expected, and what only one side has.
fn differences(expected: &Json, got: &Json) -> Vec<Difference> {
    let mut found = Vec::new();
    for (this, other, word) in [(expected, got, "missing"), (got, expected, "not expected")] {
        let names = this.endpoints.iter().filter(|name| !other.endpoints.contains(name));
        found.extend(names.map(|name| Difference { port: None, text: format!("endpoint {name}: {word}") }));
        let has = |port: &str| other.tables.iter().any(|table| table.port == port);
        let ports = this.tables.iter().map(|table| &table.port).filter(|port| !has(port));
        found.extend(ports.map(|port| Difference { port: Some(port.clone()), text: format!("port {port}: {word}") }));
    }
    let places: BTreeMap<&str, usize> = expected.endpoints.iter().map(String::as_str).zip(0..).collect();
    let verdict = |cell: Option<char>| {
        let verdict = cell.and_then(Cell::from_letter).and_then(Cell::verdict);
        verdict.map_or("not asked", Verdict::name)
    };
    for table in &got.tables {
        let Some(old) = expected.tables.iter().find(|old| old.port == table.port) else { continue };
        for (from, row) in got.endpoints.iter().zip(&table.rows) {
            let old_row = places.get(from.as_str()).and_then(|place| old.rows.get(*place));
            let Some(old_row) = old_row.map(|row| row.chars().collect::<Vec<char>>()) else { continue };
            for (to, cell) in got.endpoints.iter().zip(row.chars()) {
                let Some(was) = places.get(to.as_str()).map(|place| old_row.get(*place).copied()) else { continue };
                if was != Some(cell) {
                    let (was, is) = (verdict(was), verdict(Some(cell)));
                    let text = format!("{from} → {to} {}: expected {was}, got {is}", table.port);
                    found.push(Difference { port: Some(table.port.clone()), text });
                }
            }
        }
    }
    found
}

/// One case for each port, and one for the endpoints.
fn cases(got: &Json, differences: &[Difference]) -> Vec<Case> {
    let mut ports: Vec<Option<&str>> = vec![None];
    ports.extend(got.tables.iter().map(|table| Some(table.port.as_str())));
    let missing = differences.iter().filter_map(|one| one.port.as_deref()).map(Some);
    for port in missing {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    let case = |port: &Option<&str>| {
        let own = differences.iter().filter(|one| one.port.as_deref() == *port);
        let lines: Vec<&str> = own.map(|one| one.text.as_str()).collect();
        let failure = (!lines.is_empty()).then(|| (format!("{} differ", lines.len()), lines.join("\n")));
        Case { class: "matrix".to_owned(), name: port.unwrap_or("endpoints").to_owned(), failure }
    };
    ports.iter().map(case).collect()
}

fn text(model: &Model, answer: &Answer, declared: bool, taken: Duration) -> String {
    let matrix = &answer.matrix;
    let names = short_names(matrix);
    let policies = model.policies().len() + model.cilium_policies().len() + model.cluster_policies().len();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} pods on {} nodes, {policies} network policies. Rows send, columns receive.\n\
         ✓ allowed  ! allowed, and an audited policy would deny it  » for a proxy, and there is none here  ✗ denied  · not asked\n",
        model.pods().len(),
        model.nodes().len(),
    );
    if declared && matrix.tables.len() > 1 {
        summary(model, matrix, &names, &mut out);
    }
    let mut probes = 0;
    for table in &matrix.tables {
        let totals = table.totals();
        probes += totals.1;
        let _ = writeln!(out, "{}: {} of {} allowed", table.port, totals.0, totals.1);
        let rows = table.rows.iter().map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect();
        grid(&names, rows, &mut out);
    }
    let taken = if taken < Duration::from_secs(1) { format!("{taken:.0?}") } else { format!("{taken:.1?}") };
    let _ = writeln!(
        out,
        "{probes} probes: {}; {} hook programs run by {} in {taken}",
        counts(matrix),
        answer.runs,
        answer.engine,
    );
    out
}

/// How many verdicts of each kind; those that are rare only where there are some.
fn counts(matrix: &Matrix) -> String {
    let count = |verdict| matrix.tables.iter().map(|table| table.count(verdict)).sum::<usize>();
    let words = [
        (Verdict::Allow, "allowed", true),
        (Verdict::Audit, "allowed that an audited policy would deny", false),
        (Verdict::Redirect, "for a proxy", false),
        (Verdict::Deny, "denied", true),
    ];
    let told = words.into_iter().map(|(verdict, word, always)| (count(verdict), word, always));
    let told = told.filter(|(count, _, always)| *always || *count > 0);
    told.map(|(count, word, _)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

/// Only what each receiver itself declares.
fn summary(model: &Model, matrix: &Matrix, names: &[String], out: &mut String) {
    let _ = writeln!(
        out,
        "On the ports that the receiver declares (✓ ! » ✗: all of them, ~ mixed, blank: it declares none):"
    );
    let rows = (0..matrix.endpoints.len())
        .map(|sender| {
            matrix
                .endpoints
                .iter()
                .enumerate()
                .map(|(receiver, party)| match party {
                    Party::Pod(name) => {
                        let pod = model.pods().get(name);
                        let declared: Vec<Protocol> = pod
                            .map(|pod| pod.ports.iter().map(|port| of(port.protocol, port.port)).collect())
                            .unwrap_or_default();
                        verdict(matrix, sender, receiver, &declared)
                    }
                    Party::World | Party::Node(_) | Party::Address(_) => ' ',
                })
                .collect()
        })
        .collect();
    grid(names, rows, out);
}

fn verdict(matrix: &Matrix, sender: usize, receiver: usize, ports: &[Protocol]) -> char {
    let cells: Vec<Cell> = matrix
        .tables
        .iter()
        .filter(|table| ports.contains(&table.port))
        .filter_map(|table| table.rows.get(sender)?.get(receiver).copied())
        .collect();
    match cells.first() {
        None => ' ',
        Some(first) if cells.iter().all(|cell| cell == first) => first.symbol(),
        Some(_) => '~',
    }
}

/// Names without the namespace when all pods are in one.
fn short_names(matrix: &Matrix) -> Vec<String> {
    let namespaces: BTreeSet<&str> = matrix
        .endpoints
        .iter()
        .filter_map(|party| match party {
            Party::Pod(name) => Some(name.namespace.as_str()),
            Party::Node(_) | Party::Address(_) | Party::World => None,
        })
        .collect();
    let short = |party: &Party| match party {
        Party::Pod(name) if namespaces.len() == 1 => name.name.clone(),
        Party::Pod(_) | Party::Node(_) | Party::Address(_) | Party::World => party.to_string(),
    };
    matrix.endpoints.iter().map(short).collect()
}

fn grid(names: &[String], rows: Vec<Vec<char>>, out: &mut String) {
    let digits = names.len().to_string().len();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let _ = write!(out, "  {:width$} {:digits$}  ", "", "");
    for column in 1..=names.len() {
        let _ = write!(out, " {column:>digits$}");
    }
    out.push('\n');
    for (index, (name, row)) in names.iter().zip(rows).enumerate() {
        let _ = write!(out, "  {name:width$} {:>digits$}  ", index + 1);
        for symbol in row {
            let _ = write!(out, " {symbol:>digits$}");
        }
        out.push('\n');
    }
    out.push('\n');
}
