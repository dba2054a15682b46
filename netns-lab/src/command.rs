//! The command line.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use datapath_kernel::{missing_privilege, probe_clsact, probe_tcx};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::bench;
use crate::kernel::{self, Limits};
use crate::lab::{self, Finished, How, LabReport, Told};
use crate::registry::{self, Run};
use crate::topology::{self, Lab};

/// weir on this machine's kernel: network namespaces, real agents, real devices, real sockets, and the simulator beside
/// them. Nothing is left behind.
#[derive(Debug, Parser)]
#[command(name = "netns-lab", version, after_help = "Exit codes: 0 as expected, 1 something differs, 2 wrong call.")]
struct Cli {
    /// Folder of lab files.
    #[arg(long, global = true, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/labs"))]
    labs: PathBuf,
    /// Every probe on a line of its own.
    #[arg(long, short, global = true)]
    verbose: bool,
    /// One line of JSON for each lab, and for each scenario that was run.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the labs, and whether they can run here.
    List,
    /// Runs these labs (without any: all of them).
    Run {
        /// Names, as `list` shows them, or lab files.
        names: Vec<String>,
        /// Only scenarios whose file's name contains this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Keeps what was on every device of pods and nodes while a scenario ran that did not pass, as pcapng.
        #[arg(long, value_name = "DIR")]
        keep_captures: Option<PathBuf>,
    },
    /// Builds a lab and leaves it standing; prints how to enter its nodes and pods, and how to ask its agents.
    Up {
        /// Its name, or its file.
        lab: String,
        /// Another name to stand by, as for the same lab twice.
        #[arg(long)]
        name: Option<String>,
    },
    /// How fast pods talk through weir, beside the same namespaces connected by the kernel alone, turn by turn.
    Bench {
        /// Turns of each.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=100))]
        rounds: u16,
        /// Seconds of each turn.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// What this kernel has of what weir can use, and what its verifier says about every program. Exit code 1 if weir
    /// cannot run here.
    Kernel {
        /// Only these programs.
        #[arg(long = "program", value_name = "NAME")]
        programs: Vec<String>,
        /// What it may lack and its verifier may follow (ci/kernels/limits.toml); exit code 1 if that is not so.
        #[arg(long, value_name = "FILE")]
        limits: Option<PathBuf>,
    },
    /// Takes down a lab that was left standing, or all.
    Down {
        /// Its name.
        name: Option<String>,
    },
}

/// Runs the command; returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netns-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Prints. Whoever reads may have gone; the labs are finished all the same, and the exit code is theirs.
fn say(text: &str) {
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    let everything = Command::Run { names: Vec::new(), only: None, keep_captures: None };
    match cli.command.as_ref().unwrap_or(&everything) {
        Command::List => list(cli),
        Command::Run { names, only, keep_captures } => {
            let mut labs = chosen(cli, names)?;
            if let Some(only) = only {
                restrict(&mut labs, only)?;
            }
            privileged()?;
            begin()?;
            run(cli, &labs, &How { captures: keep_captures.clone() })
        }
        Command::Up { lab, name } => {
            let labs = chosen(cli, std::slice::from_ref(lab))?;
            privileged()?;
            begin()?;
            labs.first().map_or(Ok(ExitCode::SUCCESS), |lab| up(lab, name.as_ref().unwrap_or(&lab.name)))
        }
        Command::Bench { rounds, seconds } => {
            privileged()?;
            begin()?;
            let rows = bench::run(usize::from(*rounds), *seconds, &|what| eprintln!("{what}"))?;
            if cli.json {
                rows.iter().try_for_each(|row| serde_json::to_string(row).map(|line| say(&(line + "\n"))))?;
            } else {
                say(&bench::text(&rows));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Kernel { programs, limits } => {
            privileged()?;
            let kernel = kernel::look(programs)?;
            say(&if cli.json { serde_json::to_string(&kernel)? + "\n" } else { kernel.text() });
            let limits = limits.as_deref().map(|file| Limits::read(file, &kernel.release)).transpose()?;
            let beyond = limits.map(|limits| kernel.beyond(&limits)).unwrap_or_default();
            beyond.iter().for_each(|line| eprintln!("netns-lab: {line}"));
            Ok(if kernel.runs_weir() && beyond.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Down { name } => {
            privileged()?;
            let gone = registry::take_down(name.as_deref())?;
            if let (Some(name), true) = (name, gone.is_empty()) {
                bail!("no lab {name} stands");
            }
            gone.iter().for_each(|name| say(&format!("{name} is down\n")));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn privileged() -> Result<()> {
    missing_privilege().map_or(Ok(()), |missing| {
        bail!("labs need root on Linux ({missing}): sudo -E env \"PATH=$PATH\" cargo run -p netns-lab")
    })
}

/// Before anything is made.
fn begin() -> Result<()> {
    for name in registry::clear_crashed()? {
        eprintln!("netns-lab: removed what run {name}, which did not end well, had left");
    }
    registry::clear_on_signals()
}

/// Why labs cannot run here, if they cannot.
fn obstacle() -> Option<String> {
    if let Some(missing) = missing_privilege() {
        return Some(format!("needs root ({missing})"));
    }
    let neither = probe_tcx().or_else(|_| probe_clsact());
    neither.err().map(|error| format!("this kernel cannot attach the datapath, neither by TCX nor by clsact: {error}"))
}

fn chosen(cli: &Cli, names: &[String]) -> Result<Vec<Lab>> {
    let all = || topology::load_all(&cli.labs);
    if names.is_empty() {
        return all();
    }
    let mut labs = Vec::new();
    for name in names {
        if name.ends_with(".yaml") {
            labs.push(topology::load(Path::new(name))?);
        } else {
            let found = all()?.into_iter().find(|lab| lab.name == *name);
            labs.push(found.with_context(|| format!("no lab is called `{name}`: see `netns-lab list`"))?);
        }
    }
    Ok(labs)
}

fn restrict(labs: &mut Vec<Lab>, only: &str) -> Result<()> {
    for lab in &mut *labs {
        let fits = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(only));
        lab.scenarios.retain(|file| fits(file));
        lab.checks.retain(|check| check.name.contains(only));
        lab.skips.retain(|skip| skip.scenario.contains(only));
        if !"matrix".contains(only) {
            lab.matrix.clear();
        }
    }
    labs.retain(|lab| !lab.scenarios.is_empty() || !lab.checks.is_empty() || !lab.matrix.is_empty());
    if labs.is_empty() { bail!("nothing in these labs is called like `{only}`") } else { Ok(()) }
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    about: &'a str,
    scenarios: usize,
    runs_here: bool,
    obstacle: Option<&'a str>,
}

fn list(cli: &Cli) -> Result<ExitCode> {
    let obstacle = obstacle();
    for lab in chosen(cli, &[])? {
        let scenarios = lab.scenarios.len() + lab.checks.len() + usize::from(!lab.matrix.is_empty());
        if cli.json {
            let listed = Listed {
                name: &lab.name,
                about: &lab.about,
                scenarios,
                runs_here: obstacle.is_none(),
                obstacle: obstacle.as_deref(),
            };
            say(&(serde_json::to_string(&listed)? + "\n"));
        } else {
            let here = obstacle.as_deref().map(|why| format!(" (not here: {why})")).unwrap_or_default();
            say(&format!("{:<14} {:>3} scenarios  {}{here}\n", lab.name, scenarios, lab.about));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Line<'a> {
    lab: &'a str,
    scenario: &'a str,
    probes: u64,
    differences: &'a [String],
    error: Option<&'a str>,
    skipped: Option<&'a str>,
    millis: u128,
}

/// One lab; its scenarios follow.
#[derive(Serialize)]
struct Summary<'a> {
    lab: &'a str,
    scenarios: usize,
    probes: u64,
    differences: usize,
    errors: usize,
    not_run: usize,
    /// The slowest of its worlds.
    up_millis: u128,
    millis: u128,
    /// The largest of its agents.
    agent_bytes: u64,
}

impl<'a> Summary<'a> {
    fn new(report: &'a LabReport) -> Self {
        let ran = || report.finished.iter().filter(|one| one.skipped.is_none());
        Self {
            lab: &report.name,
            scenarios: ran().count(),
            probes: ran().map(|one| one.probes).sum(),
            differences: ran().map(|one| one.differences.len()).sum(),
            errors: ran().filter(|one| one.error.is_some()).count(),
            not_run: report.finished.len() - ran().count(),
            up_millis: report.up.iter().max().map_or(0, Duration::as_millis),
            millis: report.took.as_millis(),
            agent_bytes: report.resident,
        }
    }
}

fn run(cli: &Cli, labs: &[Lab], how: &How) -> Result<ExitCode> {
    if let Some(why) = obstacle() {
        bail!("{why}");
    }
    let began = Instant::now();
    let mut reports = Vec::new();
    for lab in labs {
        let bar = progress();
        let report = lab::run(lab, how, &mut |told| match told {
            Told::Begins(count) => bar.set_length(u64::try_from(count).unwrap_or(0)),
            Told::Does(what) => bar.set_message(what.to_owned()),
            Told::Ended(finished) => {
                bar.inc(1);
                bar.suspend(|| {
                    if !cli.json {
                        say(&text(&lab.name, finished, cli.verbose));
                    }
                });
            }
        });
        bar.finish_and_clear();
        if cli.json {
            say(&(serde_json::to_string(&Summary::new(&report))? + "\n"));
            for finished in &report.finished {
                let line = Line {
                    lab: &lab.name,
                    scenario: &finished.name,
                    probes: finished.probes,
                    differences: &finished.differences,
                    error: finished.error.as_deref(),
                    skipped: finished.skipped.as_deref(),
                    millis: finished.took.as_millis(),
                };
                say(&(serde_json::to_string(&line)? + "\n"));
            }
        }
        reports.push(report);
    }
    if !cli.json {
        say(&table(&reports, began.elapsed()));
    }
    let all = || reports.iter().flat_map(|report| &report.finished);
    Ok(match (all().any(|one| one.error.is_some()), all().any(|one| !one.differences.is_empty())) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}

fn progress() -> ProgressBar {
    let terminal = io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn text(lab: &str, finished: &Finished, verbose: bool) -> String {
    let state = match finished {
        Finished { error: Some(_), .. } => "ERROR",
        Finished { skipped: Some(_), .. } => "not run",
        finished if finished.passed() => "ok",
        _ => "DIFFERS",
    };
    let name = format!("{lab}/{}", finished.name);
    let mut text =
        format!("{state:<8} {name:<44} {:>4} probes {:>7.2} s\n", finished.probes, finished.took.as_secs_f32());
    let mut add = |line: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    {line}");
    };
    if verbose {
        finished.lines.iter().for_each(|line| add(line));
    }
    finished.differences.iter().for_each(|line| add(&format!("DIFFERS {line}")));
    finished.error.iter().for_each(|line| add(line));
    text
}

fn table(reports: &[LabReport], took: Duration) -> String {
    let mut text = format!(
        "\n{:<14} {:>9} {:>7} {:>11} {:>6} {:>8} {:>8} {:>9}\n",
        "lab", "scenarios", "probes", "differences", "errors", "up", "time", "agent"
    );
    for report in reports {
        let sum = Summary::new(report);
        let up = report.up.iter().max().map_or("-".to_owned(), |up| format!("{:.2} s", up.as_secs_f32()));
        let _ = writeln!(
            text,
            "{:<14} {:>9} {:>7} {:>11} {:>6} {up:>8} {:>6.1} s {:>5.1} MiB",
            sum.lab,
            sum.scenarios,
            sum.probes,
            sum.differences,
            sum.errors,
            report.took.as_secs_f32(),
            f64::from(u32::try_from(sum.agent_bytes / 1024).unwrap_or(u32::MAX)) / 1024.0,
        );
    }
    let skipped = |report: &LabReport| {
        let all = report.finished.iter().filter_map(|one| Some((one.name.clone(), one.skipped.clone()?)));
        all.map(|(name, why)| format!("not run: {}/{name}: {why}\n", report.name)).collect::<String>()
    };
    text.extend(reports.iter().map(skipped));
    let _ = writeln!(text, "{:.1} s in all", took.as_secs_f32());
    text
}

fn up(lab: &Lab, name: &str) -> Result<ExitCode> {
    if let Some(why) = obstacle() {
        bail!("{why}");
    }
    let began = Instant::now();
    let world = lab::up(lab, Run::begin(Some(name))?)?;
    let mut text = format!("{name} stands ({:.2} s):\n", began.elapsed().as_secs_f32());
    for place in world.places().chain([world.outside(), world.switch()]) {
        let _ = writeln!(text, "  {:<24} nsenter --net={}", place.name(), place.path());
    }
    text.push_str("Its agents:\n");
    for node in world.nodes() {
        let _ = writeln!(text, "  {:<24} weir --socket {} status", node, world.agent(node)?.socket().display());
    }
    let _ = writeln!(text, "`netns-lab down {name}` takes it down.");
    say(&text);
    world.leave_standing()?;
    Ok(ExitCode::SUCCESS)
}
