//! `weir-sim fuzz`.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use datapath_abi::DropReason;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{Failure, to_json};
use crate::fuzz::{self, FuzzError, Options};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    packets: u64,
    seed: u64,
    engines: Vec<&'static str>,
    forwarded: u64,
    reasons: Vec<&'static str>,
    difference: Option<DifferenceJson<'a>>,
}

#[derive(Serialize)]
struct DifferenceJson<'a> {
    after: u64,
    what: &'a str,
    scenario: String,
}

impl From<FuzzError> for Failure {
    fn from(error: FuzzError) -> Self {
        Self::Input(error.to_string())
    }
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let options = &args.options;
    let start = Instant::now();
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(options.packets), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} packets, {eta} left") {
        bar.set_style(style);
    }
    let outcome = fuzz::run(options, &mut |progress| bar.set_position(progress.packets))?;
    bar.finish_and_clear();
    let taken = start.elapsed();
    let engines: Vec<&str> = options.engines.iter().map(|kind| kind.name()).collect();
    let file = options.out.display().to_string();
    let mut out = std::io::stdout().lock();
    if args.json {
        let difference = outcome.difference.as_ref();
        let json = Json {
            packets: outcome.packets,
            seed: options.seed,
            engines,
            forwarded: outcome.forwarded,
            reasons: outcome.reasons.iter().map(|reason| DropReason::name(*reason)).collect(),
            difference: difference.map(|found| DifferenceJson {
                after: found.after,
                what: &found.what,
                scenario: file,
            }),
        };
        writeln!(out, "{}", to_json(&json)?)?;
    } else {
        writeln!(
            out,
            "seed {}: {} packets in {} worlds through {}: {} went on, {} drop reasons seen; {:.1?}",
            options.seed,
            outcome.packets,
            outcome.worlds,
            engines.join(", "),
            outcome.forwarded,
            outcome.reasons.len(),
            taken
        )?;
        match &outcome.difference {
            None => writeln!(out, "no difference")?,
            Some(found) => {
                writeln!(out, "difference after {} packets, written to {file}:", found.after)?;
                writeln!(out, "{}", found.what)?;
            }
        }
    }
    Ok(if outcome.difference.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
