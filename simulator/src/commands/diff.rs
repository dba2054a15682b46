//! `weir-sim diff`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_core::Model;
use serde::Serialize;

use super::ask::{ask, once, parties, ports_of_policies};
use super::{Failure, files, parse_port};
use crate::cluster::explain::By;
use crate::cluster::matrix::{Class, Matrix, Question, Wanted, declared_ports};
use crate::cluster::{EngineKind, Family, Options, Party, Protocol};
use crate::report::alike::{Alike, Side, Version};
use crate::report::allow::{self, Expected};
use crate::report::class::Classes;
use crate::report::diff::{self, Block, Group, compare};
use crate::report::junit::{self, Case};
use crate::report::markdown::{self, Parts, headline};
use crate::report::names::{few, words};
use crate::report::{Book, Line};

/// What `--help` says at its end.
const NOTES: &str = "\
Exit code 0: no verdict changes, or only those that --allow lists. 1: some do. 2: wrong input.

The ports asked for are all that pods declare and all that policies name, in either version, unless --port says which. \
Pods that exist in one version only are listed apart; their verdicts are no changes. Pods keep the node and the address \
that was filled in for them, if the nodes are the same.

--allow FILE lists changes that are meant to happen, one in each line, four words:

    # verdict afterwards (allow, deny, redirect, audit), from, to, port; * stands for anything
    deny   office/*      data/books-0  5432/TCP
    allow  shop/cart-*   world         *

Lines that nothing fulfils are reported; they do not change the exit code.";

#[derive(Debug, clap::Args)]
#[command(after_long_help = NOTES)]
pub struct Args {
    /// Manifests of the old version: files, folders, or `-` for standard input.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    before: Vec<PathBuf>,
    /// Manifests of the new version.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    after: Vec<PathBuf>,
    /// Manifests that belong to both versions, as a dump of the cluster beside two versions of its policies.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    with: Vec<PathBuf>,
    /// Ask nodes too. Without this they are asked if a policy is about nodes.
    #[arg(long)]
    nodes: bool,
    /// Port to ask for, as 80/TCP, 53/UDP, 9/SCTP or ICMP; may be given several times.
    #[arg(long = "port", value_name = "PORT/PROTOCOL", value_parser = parse_port)]
    ports: Vec<Protocol>,
    /// Address family. Default: IPv4 where both ends have it.
    #[arg(long, ignore_case = true)]
    family: Option<Family>,
    /// Changes that are meant to happen.
    #[arg(long, value_name = "FILE")]
    allow: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print Markdown, fit for a comment on a pull request.
    #[arg(long)]
    markdown: bool,
    /// Write a JUnit report.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Send every probe, also those that both versions, or other pods, answer alike because their maps hold the same.
    #[arg(long)]
    all: bool,
    /// What runs the bytecode.
    #[arg(long, value_enum, default_value_t)]
    engine: EngineKind,
    /// Seed of everything that is left to chance (ports, tags).
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Settings of the old version alone, in place of --config.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the cluster's agents")]
    before_config: Option<PathBuf>,
    /// Settings of the new version alone, in place of --config.
    #[arg(long, value_name = "FILE", help_heading = "Settings of the cluster's agents")]
    after_config: Option<PathBuf>,
    #[command(flatten)]
    settings: super::settings::Args,
}

/// Names of pods that one version has and the other has not.
fn only(this: &Model, other: &Model) -> Vec<String> {
    this.pods().keys().filter(|name| !other.pods().contains_key(name)).map(ToString::to_string).collect()
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let expected = args.allow.as_deref().map(read_list).transpose()?.unwrap_or_default();
    let paths = |own: &[PathBuf]| [&args.with, own].concat();
    let all = || [&args.before, &args.after, &args.with].into_iter().flatten();
    if all().filter(|path| is_stdin(path)).count() > 1 || args.with.iter().any(|path| is_stdin(path)) {
        return Err(Failure::Input(
            "standard input (`-`) can be read only once, for --before or for --after".to_owned(),
        ));
    }
    let settings = |own: &Option<PathBuf>| args.settings.read(own.as_deref());
    let (old_config, new_config) = (settings(&args.before_config)?, settings(&args.after_config)?);
    let before = files::model(&paths(&args.before), &old_config)?;
    let after = files::later(&before, &paths(&args.after), &new_config)?;
    let ports = if args.ports.is_empty() { ports(&before, &after) } else { once(args.ports.clone()) };
    if ports.is_empty() {
        let text = "no pod declares a port, and no policy names one; say which to ask for: --port 80/TCP";
        return Err(Failure::Input(text.to_owned()));
    }
    let parties: Vec<Party> = parties(&[&before, &after], args.nodes)
        .into_iter()
        .filter(|party| match party {
            Party::Pod(name) => before.pods().contains_key(name),
            Party::Node(name) => before.node(name).is_some(),
            Party::Address(_) | Party::World => true,
        })
        .collect();
    let version = |model, config| Version::new(model, config).map_err(|error| Failure::Input(error.to_string()));
    let (before, after) = (version(before, old_config)?, version(after, new_config)?);
    let (old, new) = matrices(args, &before, &after, &parties, &ports)?;
    let (book_before, book_after) = (Book::of(&before, &parties), Book::of(&after, &parties));
    let diff = compare(
        diff::Side { matrix: &old, book: &book_before },
        diff::Side { matrix: &new, book: &book_after },
        &expected,
    );
    let unused: Vec<String> =
        diff.unused.iter().filter_map(|number| expected.get(*number)).map(|line| line.text.clone()).collect();
    let parts = Parts {
        diff: &diff,
        matrix: &new,
        before: &book_before,
        after: &book_after,
        gone: &only(&before.model, &after.model),
        new: &only(&after.model, &before.model),
        unused: &unused,
    };
    if let Some(path) = &args.junit {
        let report = junit::write("weir-sim diff", &cases(&parts));
        std::fs::write(path, report).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let names: Vec<String> = parties.iter().map(Party::to_string).collect();
        let ports: Vec<String> = ports.iter().map(Protocol::to_string).collect();
        writeln!(out, "{}", super::to_json(&json(&parts, &names, &ports))?)?;
    } else if args.markdown {
        write!(out, "{}", markdown::write(&parts))?;
    } else {
        write!(out, "{}", text(&parts))?;
    }
    Ok(if diff.unexpected() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks both versions.
fn matrices(
    args: &Args,
    before: &Version,
    after: &Version,
    parties: &[Party],
    ports: &[Protocol],
) -> Result<(Matrix, Matrix), Failure> {
    let states = |version: &Version| if args.all { Vec::new() } else { version.states(parties) };
    let (old_states, new_states) = (states(before), states(after));
    let old = Side { version: before, states: &old_states };
    let new = Side { version: after, states: &new_states };
    let alike = (!args.all).then(|| Alike::new(old, new, parties));
    let wanted = |from: usize, to: usize| alike.as_ref().is_none_or(|alike| alike.may_differ(from, to));
    let matrix = |side: Side<'_>, title| {
        let options = Options { engine: args.engine, seed: args.seed, verdicts: true, ..Options::default() };
        let options = &side.version.config.options(options);
        let classes = (!args.all).then(|| Classes::new(side, parties, args.family));
        let class = |from: usize, to: usize| classes.as_ref()?.of(from, to);
        let (model, family) = (&side.version.model, args.family);
        let (wanted, class) = (Some(&wanted as Wanted<'_>), Some(&class as Class<'_>));
        ask(Question { model, options, parties, ports, wanted, class, family, threads: 1 }, title)
    };
    Ok((matrix(old, "before ")?.matrix, matrix(new, "after  ")?.matrix))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn read_list(path: &Path) -> Result<Vec<Expected>, Failure> {
    let name = files::shown(path);
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    allow::read(&name, &text).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::Input(lines.join("\n"))
    })
}

/// What pods declare and policies name, in either version; by number.
fn ports(before: &Model, after: &Model) -> Vec<Protocol> {
    let mut ports: BTreeSet<Protocol> = BTreeSet::new();
    for model in [before, after] {
        ports.extend(declared_ports(model));
        ports.extend(ports_of_policies(model));
    }
    let mut ports: Vec<Protocol> = ports.into_iter().collect();
    ports.sort_by_key(|port| (port.port().is_none(), port.port(), *port));
    ports
}

/// Names in a line of text at most.
const MOST_NAMES: usize = 8;

fn verb(group: &Group) -> String {
    format!("{} → {}", group.was.name(), group.is.name())
}

fn port_words(parts: &Parts<'_>, block: &Block) -> Vec<String> {
    let tables = block.ports.iter().filter_map(|port| parts.matrix.tables.get(*port));
    tables.map(|table| table.port.to_string()).collect()
}

fn group_text(parts: &Parts<'_>, group: &Group, out: &mut String) {
    for block in &group.blocks {
        for (title, names) in [
            ("from", words(&parts.matrix.endpoints, &block.from)),
            ("to", words(&parts.matrix.endpoints, &block.to)),
            ("on", port_words(parts, block)),
        ] {
            let _ = writeln!(out, "  {title:4}  {}", few(&names, MOST_NAMES));
        }
    }
    for (title, book, lines) in [("was", parts.before, &group.before), ("is", parts.after, &group.after)] {
        for line in lines {
            let _ = writeln!(out, "    {title:3} {}", book.text(line));
        }
    }
}

fn text(parts: &Parts<'_>) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", headline(parts));
    for group in &parts.diff.groups {
        let expected = if group.expected { " (expected)" } else { "" };
        let plural = if group.verdicts == 1 { "" } else { "s" };
        let _ = writeln!(out, "\n{}{expected}: {} verdict{plural}", verb(group), group.verdicts);
        group_text(parts, group, &mut out);
    }
    for (title, names) in [("only before", parts.gone), ("new", parts.new), ("expected, but not so", parts.unused)] {
        if !names.is_empty() {
            let _ = writeln!(out, "\n{title} ({}):", names.len());
            for name in names {
                let _ = writeln!(out, "  {name}");
            }
        }
    }
    out
}

/// One case for each reason; one that passes, if there is none.
fn cases(parts: &Parts<'_>) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for group in &parts.diff.groups {
        let mut more = String::new();
        group_text(parts, group, &mut more);
        let decided = group.after.first().map(|line| parts.after.text(line)).unwrap_or_default();
        let message = format!("{} verdicts {}: {decided}", group.verdicts, verb(group));
        let name = format!("{}: {decided}", verb(group));
        let failure = (!group.expected).then_some((message, more));
        cases.push(Case { class: "verdicts".to_owned(), name, failure });
    }
    if cases.is_empty() {
        cases.push(Case { class: "verdicts".to_owned(), name: headline(parts), failure: None });
    }
    cases
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    endpoints: usize,
    ports: Vec<String>,
    compared: usize,
    unexpected: usize,
    changes: Vec<ChangeJson<'a>>,
    groups: Vec<GroupJson>,
    only_before: &'a [String],
    only_after: &'a [String],
    unused: &'a [String],
}

#[derive(Serialize)]
struct ChangeJson<'a> {
    from: &'a str,
    to: &'a str,
    port: &'a str,
    before: &'static str,
    after: &'static str,
    expected: bool,
    group: usize,
}

#[derive(Serialize)]
struct GroupJson {
    before: Vec<LineJson>,
    after: Vec<LineJson>,
    verdicts: usize,
    expected: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LineJson {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
    /// The rule, or the policies that isolate.
    policies: Vec<PolicyJson>,
}

#[derive(Serialize)]
struct PolicyJson {
    kind: &'static str,
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    at: String,
}

fn line_json(book: &Book<'_>, line: &Line) -> LineJson {
    let text = book.text(line);
    let Line::Said(direction, said, set) = *line else {
        return LineJson { text, direction: None, verdict: None, policies: Vec::new() };
    };
    let policies = match book.by(direction, said, set) {
        By::Rule(rule) => vec![PolicyJson {
            kind: rule.kind.name(),
            policy: rule.policy.to_string(),
            rule: Some(rule.place()),
            at: rule.position.to_string(),
        }],
        By::DefaultDeny(policies) => policies
            .iter()
            .map(|policy| PolicyJson {
                kind: policy.kind.name(),
                policy: policy.name.to_string(),
                rule: None,
                at: policy.position.to_string(),
            })
            .collect(),
        By::LocalHost | By::NotIsolated => Vec::new(),
    };
    LineJson { text, direction: Some(direction.to_string()), verdict: Some(said.spoke.name()), policies }
}

fn json<'a>(parts: &Parts<'a>, names: &'a [String], ports: &'a [String]) -> Json<'a> {
    let name = |names: &'a [String], index: usize| names.get(index).map_or("", String::as_str);
    let changes = parts.diff.changes.iter().map(|change| ChangeJson {
        from: name(names, change.from),
        to: name(names, change.to),
        port: name(ports, change.port),
        before: change.was.name(),
        after: change.is.name(),
        expected: change.expected,
        group: change.group,
    });
    let groups = parts.diff.groups.iter().map(|group| GroupJson {
        before: group.before.iter().map(|line| line_json(parts.before, line)).collect(),
        after: group.after.iter().map(|line| line_json(parts.after, line)).collect(),
        verdicts: group.verdicts,
        expected: group.expected,
    });
    Json {
        endpoints: names.len(),
        ports: ports.to_vec(),
        compared: parts.diff.compared,
        unexpected: parts.diff.unexpected(),
        changes: changes.collect(),
        groups: groups.collect(),
        only_before: parts.gone,
        only_after: parts.new,
        unused: parts.unused,
    }
}
