//! `weir-sim lint`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, files};
use crate::lint::{self, CHECKS, Finding, Level};
use crate::manifests;

#[derive(Debug, clap::Args)]
#[command(after_long_help = notes())]
pub struct Args {
    /// Kubernetes manifests: files, folders, or `-` for standard input.
    #[arg(required = true)]
    manifests: Vec<PathBuf>,
    /// Exit code 1 for warnings too (or for notes too), not only for errors.
    #[arg(long, value_enum, value_name = "WHAT")]
    deny: Option<Deny>,
    /// Leave these checks out; may be given several times.
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    skip: Vec<&'static str>,
    /// Print JSON.
    #[arg(long, conflicts_with = "github")]
    json: bool,
    /// Print what GitHub Actions show beside the lines of a pull request.
    #[arg(long)]
    github: bool,
    #[command(flatten)]
    settings: super::settings::Args,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Deny {
    /// Errors and warnings.
    Warnings,
    /// Everything.
    Notes,
}

/// What `--help` says at its end: the checks.
fn notes() -> String {
    let mut text = String::from(
        "Exit code 0: nothing, or nothing that is denied. 1: an error, or what --deny names. 2: a file that cannot be read, or is \
         not YAML.\n\nChecks:\n",
    );
    for check in CHECKS {
        let _ = writeln!(text, "\n{} ({})\n    {}", check.id, check.level.name(), check.finds);
    }
    text
}

fn parse_id(text: &str) -> Result<&'static str, String> {
    let found = CHECKS.iter().find(|check| check.id == text && check.level != Level::Error);
    found.map(|check| check.id).ok_or_else(|| "no check that can be left out has this id; see --help".to_owned())
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let config = args.settings.read(None)?;
    let manifests = manifests::read(&files::read(&args.manifests)?);
    let broken = manifests.broken;
    let mut findings = lint::check(manifests, &config);
    findings.retain(|finding| !args.skip.contains(&finding.check.id));
    let count = |level| findings.iter().filter(|finding| finding.check.level == level).count();
    let counts = [count(Level::Error), count(Level::Warning), count(Level::Note)];
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", super::to_json(&json(&findings, counts))?)?;
    } else if args.github {
        findings.iter().try_for_each(|finding| writeln!(out, "{}", github(finding)))?;
    } else {
        findings.iter().try_for_each(|finding| writeln!(out, "{}", text(finding)))?;
        writeln!(out, "{}", summary(counts))?;
    }
    let [errors, warnings, notes] = counts;
    let denied = errors
        + match args.deny {
            None => 0,
            Some(Deny::Warnings) => warnings,
            Some(Deny::Notes) => warnings + notes,
        };
    Ok(match (broken, denied) {
        (true, _) => ExitCode::from(2),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

fn summary([errors, warnings, notes]: [usize; 3]) -> String {
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}, {}", plural(errors, "error"), plural(warnings, "warning"), plural(notes, "note"))
}

/// What it is about, and what.
fn message(finding: &Finding) -> String {
    let colon = if finding.object.is_empty() { "" } else { ": " };
    format!("{}{colon}{}", finding.object, finding.message)
}

fn text(finding: &Finding) -> String {
    let place = finding.position.as_ref().map_or(String::new(), |position| format!("{position}: "));
    format!("{place}{}[{}]: {}", finding.check.level.name(), finding.check.id, message(finding))
}

fn github(finding: &Finding) -> String {
    let level = match finding.check.level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Note => "notice",
    };
    let place = finding
        .position
        .as_ref()
        .map_or(String::new(), |position| format!(" file={},line={}", property(&position.file), position.line.max(1)));
    let comma = if place.is_empty() { " " } else { "," };
    let text = message(finding).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    format!("::{level}{place}{comma}title={}::{text}", property(finding.check.id))
}

fn property(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A").replace(':', "%3A").replace(',', "%2C")
}

#[derive(Serialize)]
struct Json<'a> {
    findings: Vec<FindingJson<'a>>,
    errors: usize,
    warnings: usize,
    notes: usize,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    id: &'static str,
    level: &'static str,
    file: Option<&'a str>,
    line: Option<u32>,
    object: &'a str,
    message: &'a str,
}

fn json(findings: &[Finding], [errors, warnings, notes]: [usize; 3]) -> Json<'_> {
    let findings = findings.iter().map(|finding| FindingJson {
        id: finding.check.id,
        level: finding.check.level.name(),
        file: finding.position.as_ref().map(|position| &*position.file),
        line: finding.position.as_ref().map(|position| position.line),
        object: &finding.object,
        message: &finding.message,
    });
    Json { findings: findings.collect(), errors, warnings, notes }
}
