//! `weir-sim run`.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::{EngineChoice, Failure};
use crate::cluster::scenario::{self, Failed, Report, manifest_files};
use crate::cluster::{EngineKind, Options};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario files, or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
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
struct Finished {
    file: String,
    name: String,
    report: Report,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let files = find(&args.paths)?;
    let bar = progress(files.len());
    let mut all = Vec::new();
    let mut out = std::io::stdout().lock();
    for file in &files {
        let finished = run_file(args, file);
        bar.suspend(|| -> std::io::Result<()> {
            if args.json {
                writeln!(out, "{}", as_json(&finished, args.engine))
            } else {
                write!(out, "{}", text(&finished, args))
            }
        })?;
        all.push(finished);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let failed = all.iter().filter(|finished| finished.report.failed != 0).count();
    let broken = all.iter().filter(|finished| finished.report.error.is_some()).count();
    if !args.json {
        let probes: u64 = all.iter().map(|finished| finished.report.probes).sum();
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

/// The scenario files of the arguments: files as they are; of folders those that hold a scenario.
fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let wrong = |(path, error): (PathBuf, std::io::Error)| Failure::Input(format!("{}: {error}", path.display()));
        let found = manifest_files(path, &["yaml", "yml"]).map_err(wrong)?;
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

/// Whether a file has a document that says it is a scenario; other YAML beside scenarios is what they name.
fn is_scenario(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.trim_end() == "kind: Scenario"))
}

fn progress(files: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() && files > 20 {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(u64::try_from(files).ok(), target)
}

fn run_file(args: &Args, file: &Path) -> Finished {
    let mut finished = Finished { file: file.display().to_string(), name: String::new(), report: Report::default() };
    let scenario = match scenario::load(file) {
        Ok(scenario) => scenario,
        Err(error) => {
            finished.report.error = Some(error.to_string());
            return finished;
        }
    };
    finished.name.clone_from(&scenario.name);
    let kinds = args.engine.kinds();
    for engine in kinds {
        let options = Options {
            engine: *engine,
            seed: args.seed,
            events: args.trace,
            pcap: args.pcap.as_ref().map(|folder| pcap_folder(folder, &finished.name, *engine, kinds.len())),
            ..Options::default()
        };
        let report = scenario::run(&scenario, &options, args.trace);
        finished.report.probes = finished.report.probes.max(report.probes);
        finished.report.failed = finished.report.failed.max(report.failed);
        finished.report.failures.extend(report.failures);
        finished.report.error = finished.report.error.or(report.error);
    }
    finished
}

fn pcap_folder(folder: &Path, name: &str, engine: EngineKind, engines: usize) -> PathBuf {
    let clean: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let folder = folder.join(clean);
    if engines > 1 { folder.join(engine.to_string()) } else { folder }
}

fn text(finished: &Finished, args: &Args) -> String {
    let mut out = String::new();
    let report = &finished.report;
    let verdict = match (&report.error, report.failed) {
        (Some(_), _) => "error",
        (None, 0) => "ok   ",
        (None, _) => "FAIL ",
    };
    let _ = writeln!(out, "{verdict} {}: {} ({} probes)", finished.file, finished.name, report.probes);
    if let Some(error) = &report.error {
        let _ = writeln!(out, "{error}");
    }
    for failed in &report.failures {
        let _ = writeln!(out, "  {}", failure_text(failed));
        for hop in &failed.trail {
            let _ = writeln!(out, "    {hop}");
        }
    }
    if report.failed != 0 && !args.trace {
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

fn as_json(finished: &Finished, engine: EngineChoice) -> Value {
    let failures: Vec<Value> = finished
        .report
        .failures
        .iter()
        .map(|failed| {
            let mut value = json!({
                "step": failed.step,
                "from": failed.from,
                "to": failed.to,
                "protocol": failed.protocol,
                "port": failed.port,
                "expected": failed.expected,
                "got": failed.got,
                "reason": failed.reason,
                "at": failed.at,
            });
            if let (EngineChoice::All, Some(object)) = (engine, value.as_object_mut()) {
                object.insert("engine".to_owned(), Value::from(failed.engine.to_string()));
            }
            value
        })
        .collect();
    json!({
        "file": finished.file,
        "name": finished.name,
        "probes": finished.report.probes,
        "failed": finished.report.failed,
        "failures": failures,
        "error": finished.report.error,
    })
}

fn junit(all: &[Finished]) -> String {
    let failed = all.iter().filter(|finished| finished.report.failed != 0).count();
    let broken = all.iter().filter(|finished| finished.report.error.is_some()).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuite name=\"weir-sim\" tests=\"{}\" failures=\"{failed}\" errors=\"{broken}\">",
        all.len()
    );
    for finished in all {
        let _ =
            write!(out, "  <testcase classname=\"{}\" name=\"{}\">", escaped(&finished.file), escaped(&finished.name));
        if let Some(error) = &finished.report.error {
            let _ = write!(out, "<error message=\"{}\"/>", escaped(error));
        }
        for failed in &finished.report.failures {
            let _ = write!(out, "<failure message=\"{}\"/>", escaped(&failure_text(failed)));
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
