//! `weir-sim run`.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_core::yaml::{self, Node};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use super::{EngineChoice, Failure, files, to_json};
use crate::cluster::scenario::{self as clusters, Failed, manifest_files};
use crate::cluster::{EngineKind, Options};
use crate::scenario::{self as packets, EngineSet};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario files, folders of them, or `-` for a cluster scenario on standard input.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Manifests that every cluster scenario begins with, before its own: files, folders, or `-` for standard input.
    #[arg(long, num_args = 1, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// What runs the bytecode.
    #[arg(long, value_enum, default_value_t)]
    engine: EngineChoice,
    /// Print one line of JSON per scenario.
    #[arg(long)]
    json: bool,
    /// Write a JUnit report.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print every hop of the probes that fail.
    #[arg(long)]
    trace: bool,
    /// Write what crossed every link, one folder per scenario, one pcapng file per link.
    #[arg(long, value_name = "DIR")]
    pcap: Option<PathBuf>,
    /// Seed of everything that is left to chance (ports, tags).
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What one scenario file said.
#[derive(Serialize)]
struct Finished {
    file: String,
    name: String,
    /// Flows of a cluster scenario, packets of a packet scenario.
    probes: u64,
    failed: u64,
    failures: Vec<FailureLine>,
    error: Option<String>,
    /// For people: what a packet scenario printed, or the hops of failed probes.
    #[serde(skip)]
    details: String,
}

/// One failure, as `--json` prints it. A packet scenario's has step, engine and what it got.
#[derive(Default, Serialize)]
struct FailureLine {
    step: usize,
    from: Option<String>,
    to: Option<String>,
    protocol: Option<&'static str>,
    port: Option<u16>,
    expected: Option<String>,
    got: String,
    reason: Option<String>,
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<String>,
    #[serde(skip)]
    line: String,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let all = || args.paths.iter().chain(&args.with);
    if all().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Failure::Input("standard input (`-`) can be read only once".to_owned()));
    }
    let found = find(&args.paths)?;
    let mut with = Vec::new();
    for (name, text) in files::read(&args.with)? {
        with.extend(yaml::parse(&name, &text).map_err(|error| Failure::Input(error.to_string()))?);
    }
    let kinds = args.engine.kinds();
    let mut engines = EngineSet::new(&args.engine.packet_kinds());
    let bar = progress(found.len());
    let mut all = Vec::new();
    let mut out = std::io::stdout().lock();
    for file in &found {
        let finished = if is_packet(file) { packet(file, &mut engines) } else { cluster(args, &kinds, file, &with) };
        bar.suspend(|| -> Result<(), Failure> {
            if args.json {
                writeln!(out, "{}", to_json(&finished)?)?;
            } else {
                write!(out, "{}", text(&finished, args))?;
            }
            Ok(())
        })?;
        all.push(finished);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let failed = all.iter().filter(|finished| finished.failed != 0).count();
    let broken = all.iter().filter(|finished| finished.error.is_some()).count();
    if !args.json {
        let probes: u64 = all.iter().map(|finished| finished.probes).sum();
        writeln!(out, "{} scenarios, {probes} probes: {failed} failed, {broken} not usable", all.len())?;
    }
    if let Some(path) = &args.junit {
        std::fs::write(path, junit(&all)).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    }
    Ok(match (broken, failed) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        (_, _) => ExitCode::from(2),
    })
}

fn is_packet(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "toml")
}

/// The scenario files of the arguments: files as they are; of folders those that hold a scenario.
fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(path.clone());
            continue;
        }
        let wrong = |(path, error): (PathBuf, std::io::Error)| Failure::Input(format!("{}: {error}", path.display()));
        let found = manifest_files(path, &["yaml", "yml", "toml"]).map_err(wrong)?;
        if path.is_dir() {
            let before = files.len();
            files.extend(found.into_iter().filter(|file| is_scenario(file)));
            if files.len() == before {
                return Err(Failure::Input(format!("{}: no scenario in this folder", path.display())));
            }
        } else {
            files.extend(found);
        }
    }
    Ok(files)
}

/// Whether a file of a folder is a scenario: packet scenarios have steps, cluster scenarios say so. Other files beside
/// them are what they name.
fn is_scenario(path: &Path) -> bool {
    let mark = if is_packet(path) { "[[step]]" } else { "kind: Scenario" };
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.trim_end() == mark))
}

fn progress(files: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() && files > 20 {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(u64::try_from(files).ok(), target)
}

/// A cluster scenario, on every engine that is asked for.
fn cluster(args: &Args, kinds: &[EngineKind], file: &Path, with: &[Node]) -> Finished {
    let mut finished = Finished::new(file);
    let scenario = match clusters::load_with(file, with) {
        Ok(scenario) => scenario,
        Err(error) => {
            finished.error = Some(error.to_string());
            return finished;
        }
    };
    finished.name.clone_from(&scenario.name);
    if !scenario.passed.is_empty() {
        let _ = writeln!(std::io::stderr(), "note: {}: {}", finished.file, scenario.passed);
    }
    for engine in kinds {
        let options = Options {
            engine: *engine,
            seed: args.seed,
            events: args.trace,
            pcap: args.pcap.as_ref().map(|folder| pcap_folder(folder, &finished.name, *engine, kinds.len())),
            ..Options::default()
        };
        let report = clusters::run(&scenario, &options, args.trace);
        finished.probes = finished.probes.max(report.probes);
        finished.failed = finished.failed.max(report.failed);
        for failed in report.failures {
            for hop in &failed.trail {
                let _ = writeln!(finished.details, "    {hop}");
            }
            finished.failures.push(failure_line(failed, kinds.len() > 1));
        }
        finished.error = finished.error.or(report.error);
    }
    finished
}

/// A packet scenario.
fn packet(file: &Path, engines: &mut EngineSet) -> Finished {
    let mut finished = Finished::new(file);
    let scenario = match packets::load(file) {
        Ok(scenario) => scenario,
        Err(error) => {
            finished.error = Some(error.to_string());
            return finished;
        }
    };
    finished.name.clone_from(&scenario.title);
    match packets::run(&scenario, engines) {
        Ok(report) => {
            finished.probes = u64::try_from(report.steps).unwrap_or(0);
            finished.failed = u64::try_from(report.failures.len()).unwrap_or(0);
            if !report.passed() {
                finished.details = format!("{report}\n");
            }
            for failure in report.failures {
                let engines: Vec<&str> = failure.engines.iter().map(|kind| kind.name()).collect();
                finished.failures.push(FailureLine {
                    step: failure.step,
                    got: failure.problems.join("; "),
                    at: Some(format!("{}:{}", finished.file, failure.line)),
                    engine: Some(engines.join(",")),
                    line: failure.problems.join("; "),
                    ..FailureLine::default()
                });
            }
        }
        Err(error) => finished.error = Some(error.to_string()),
    }
    finished
}

impl Finished {
    fn new(file: &Path) -> Self {
        Self {
            file: file.display().to_string(),
            name: String::new(),
            probes: 0,
            failed: 0,
            failures: Vec::new(),
            error: None,
            details: String::new(),
        }
    }
}

fn failure_line(failed: Failed, several: bool) -> FailureLine {
    FailureLine {
        line: failure_text(&failed),
        step: failed.step,
        from: Some(failed.from),
        to: Some(failed.to),
        protocol: Some(failed.protocol),
        port: failed.port,
        expected: Some(failed.expected),
        got: failed.got,
        reason: failed.reason,
        at: failed.at,
        engine: several.then(|| failed.engine.to_string()),
    }
}

fn pcap_folder(folder: &Path, name: &str, engine: EngineKind, engines: usize) -> PathBuf {
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let folder = folder.join(clean);
    if engines > 1 { folder.join(engine.to_string()) } else { folder }
}

fn text(finished: &Finished, args: &Args) -> String {
    let mut out = String::new();
    let verdict = match (&finished.error, finished.failed) {
        (Some(_), _) => "error",
        (None, 0) => "ok   ",
        (None, _) => "FAIL ",
    };
    let name = if finished.name.is_empty() {
        String::new()
    } else {
        format!(": {} ({} probes)", finished.name, finished.probes)
    };
    let _ = writeln!(out, "{verdict} {}{name}", finished.file);
    if let Some(error) = &finished.error {
        let _ = writeln!(out, "{error}");
    }
    if is_packet(Path::new(&finished.file)) {
        out.push_str(&finished.details);
        return out;
    }
    for failure in &finished.failures {
        let _ = writeln!(out, "  {}", failure.line);
    }
    out.push_str(&finished.details);
    if finished.failed != 0 && !args.trace {
        let _ = writeln!(out, "  again, hop by hop: weir-sim run {} --engine checked --trace", finished.file);
    }
    out
}

fn failure_text(failed: &Failed) -> String {
    let port = failed.port.map_or(String::new(), |port| format!(" {port}"));
    let mut text = format!(
        "{}: step {}: {} → {} {}{port}: expected {}, got {}",
        failed.at_line, failed.step, failed.from, failed.to, failed.protocol, failed.expected, failed.got
    );
    if let Some(reason) = &failed.reason {
        let _ = write!(text, " {reason}");
    }
    if let Some(at) = &failed.at {
        let _ = write!(text, " at {at}");
    }
    let _ = write!(text, " ({})", failed.engine);
    text
}

fn junit(all: &[Finished]) -> String {
    let failed = all.iter().filter(|finished| finished.failed != 0).count();
    let broken = all.iter().filter(|finished| finished.error.is_some()).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuite name=\"weir-sim\" tests=\"{}\" failures=\"{failed}\" errors=\"{broken}\">",
        all.len()
    );
    for finished in all {
        let (file, name) = (escaped(&finished.file), escaped(&finished.name));
        let _ = write!(out, "  <testcase classname=\"{file}\" name=\"{name}\">");
        if let Some(error) = &finished.error {
            let _ = write!(out, "<error message=\"{}\"/>", escaped(error));
        }
        for failure in &finished.failures {
            let _ = write!(out, "<failure message=\"{}\"/>", escaped(&failure.line));
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}
