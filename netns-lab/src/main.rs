//! `sudo -E cargo run -p netns-lab`: every lab, or those that are named.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use datapath_kernel::missing_privilege;
use netns_lab::labs::{self, Lab};
use netns_lab::report::Report;

/// weir's datapath on this machine's kernel: network namespaces, real devices, real sockets. Nothing is left behind.
#[derive(Parser)]
#[command(name = "netns-lab", version, after_help = "Exit codes: 0 as expected, 1 a check failed, 2 wrong call.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the labs.
    List,
    /// Runs these labs.
    Run {
        /// Names, as `list` shows them.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let chosen: Vec<&Lab> = match Cli::parse().command {
        None => labs::ALL.iter().collect(),
        Some(Command::List) => {
            for lab in labs::ALL {
                println!("{:<12} {}", lab.name, lab.about);
            }
            return ExitCode::SUCCESS;
        }
        Some(Command::Run { names }) => {
            let mut chosen = Vec::new();
            for name in names {
                let Some(lab) = labs::ALL.iter().find(|lab| lab.name == name) else {
                    eprintln!("no lab is called `{name}`: see `netns-lab list`");
                    return ExitCode::from(2);
                };
                chosen.push(lab);
            }
            chosen
        }
    };
    if let Some(missing) = missing_privilege() {
        eprintln!("netns-lab needs root on Linux ({missing}): sudo -E cargo run -p netns-lab");
        return ExitCode::from(2);
    }
    let (mut passed, mut failed) = (0, 0);
    for lab in chosen {
        println!("{}: {}", lab.name, lab.about);
        let began = Instant::now();
        let mut report = Report::default();
        let ended = (lab.run)(&mut report);
        if let Err(error) = ended {
            report.check("the lab ends", Some(format!("{error:#}")));
        }
        print!("{}", report.text());
        println!("  {:.1} s", began.elapsed().as_secs_f32());
        let (good, bad) = report.counts();
        passed += good;
        failed += bad;
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
