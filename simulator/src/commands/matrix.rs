//! `weir-sim matrix`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent_core::Model;
use serde::{Deserialize, Serialize};

use super::ask::{ask, once};
use super::{Failure, files, parse_port};
use crate::cluster::matrix::{Answer, Cell, Matrix, Question, declared_ports, endpoints, of};
use crate::cluster::{EngineKind, Family, Options, Party, Protocol};
use crate::report::alike::Version;
use crate::report::{Book, page};

/// What `--help` says at its end.
const NOTES: &str = "Workloads become pods NAME-0, NAME-1, ...; without Node objects there are two nodes; missing \
addresses are filled in. `world` is one host outside: 203.0.113.7, over IPv6 2001:db8::7. Allowed means that the request \
arrived and that the answer came back.";

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
    /// Print JSON: endpoints, and per port one string for each sender (1 allow, 0 deny, . not asked).
    #[arg(long)]
    json: bool,
    /// Also write a page for people: a heat map with the rule behind every verdict. It needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with this earlier output of --json; exit code 1 if a verdict differs.
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// What runs the bytecode.
    #[arg(long, value_enum, default_value_t)]
    engine: EngineKind,
    /// Seed of everything that is left to chance (ports, tags).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write what crossed every link into this folder, one pcapng file each.
    #[arg(long, value_name = "DIR")]
    pcap: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let model = files::model(&args.manifests)?;
    let ports = if args.ports.is_empty() { declared_ports(&model) } else { args.ports.clone() };
    if ports.is_empty() {
        return Err(Failure::Input("no pod declares a port; say which to ask for: --port 80/TCP".to_owned()));
    }
    let (ports, parties) = (once(ports), endpoints(&model));
    let options = Options {
        engine: args.engine,
        seed: args.seed,
        verdicts: args.html.is_some(),
        pcap: args.pcap.clone(),
        ..Options::default()
    };
    let expected = args.expect.as_deref().map(read_expected).transpose()?;
    let question = Question {
        model: &model,
        options: &options,
        parties: &parties,
        ports: &ports,
        wanted: None,
        family: args.family,
        threads: 1,
    };
    let answer = ask(question, "")?;
    if let Some(path) = &args.html {
        let version = Version::new(model.clone()).map_err(|error| Failure::Input(error.to_string()))?;
        let book = Book::of(&version, &parties);
        let page = page::write(&answer.matrix, &book).map_err(|error| Failure::Output(error.into()))?;
        std::fs::write(path, page).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    }
    let mut out = std::io::stdout().lock();
    if let Some(expected) = expected {
        let differences = differences(&expected, &json(&answer.matrix));
        differences.iter().try_for_each(|line| writeln!(out, "{line}"))?;
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

/// Every verdict that is not as expected, and what only one side has.
fn differences(expected: &Json, got: &Json) -> Vec<String> {
    let mut lines = Vec::new();
    for (this, other, word) in [(expected, got, "missing"), (got, expected, "not expected")] {
        let names = this.endpoints.iter().filter(|name| !other.endpoints.contains(name));
        lines.extend(names.map(|name| format!("endpoint {name}: {word}")));
        let has = |port: &str| other.tables.iter().any(|table| table.port == port);
        lines.extend(
            this.tables.iter().filter(|table| !has(&table.port)).map(|table| format!("port {}: {word}", table.port)),
        );
    }
    let places: BTreeMap<&str, usize> = expected.endpoints.iter().map(String::as_str).zip(0..).collect();
    let verdict = |cell: Option<char>| match cell {
        Some('1') => "allow",
        Some('0') => "deny",
        Some(_) | None => "not asked",
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
                    lines.push(format!("{from} → {to} {}: expected {was}, got {is}", table.port));
                }
            }
        }
    }
    lines
}

fn text(model: &Model, answer: &Answer, declared: bool, taken: Duration) -> String {
    let matrix = &answer.matrix;
    let names = short_names(matrix);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} pods on {} nodes, {} network policies. Rows send, columns receive. ✓ allowed  ✗ denied  · not asked\n",
        model.pods().len(),
        model.nodes().len(),
        model.policies().len()
    );
    if declared && matrix.tables.len() > 1 {
        summary(model, matrix, &names, &mut out);
    }
    let (mut allowed, mut probes) = (0, 0);
    for table in &matrix.tables {
        let totals = table.totals();
        allowed += totals.0;
        probes += totals.1;
        let _ = writeln!(out, "{}: {} of {} allowed", table.port, totals.0, totals.1);
        let rows = table.rows.iter().map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect();
        grid(&names, rows, &mut out);
    }
    let taken = if taken < Duration::from_secs(1) { format!("{taken:.0?}") } else { format!("{taken:.1?}") };
    let _ = writeln!(
        out,
        "{probes} probes: {allowed} allowed, {} denied; {} hook programs run by {} in {taken}",
        probes - allowed,
        answer.runs,
        answer.engine,
    );
    out
}

/// Only what each receiver itself declares.
fn summary(model: &Model, matrix: &Matrix, names: &[String], out: &mut String) {
    let _ = writeln!(out, "On the ports that the receiver declares (✓ all, ~ some, ✗ none, blank: it declares none):");
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
    let allowed = cells.iter().filter(|cell| **cell == Cell::Allow).count();
    match cells.first() {
        None => ' ',
        Some(Cell::Same) => Cell::Same.symbol(),
        Some(Cell::Allow | Cell::Deny) if allowed == cells.len() => Cell::Allow.symbol(),
        Some(Cell::Allow | Cell::Deny) if allowed == 0 => Cell::Deny.symbol(),
        Some(Cell::Allow | Cell::Deny) => '~',
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
