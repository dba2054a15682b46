//! `sudo -E cargo run -p netns-lab`: every lab, or those that are named.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use datapath_kernel::missing_privilege;
use netns_lab::labs::{self, Lab};
use netns_lab::world::World;

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
    /// Builds a lab and leaves it standing until ^C; prints how to enter its nodes and pods.
    Up {
        /// Its name.
        name: String,
    },
}

fn main() -> ExitCode {
    let (names, stay) = match Cli::parse().command {
        None => (labs::ALL.iter().map(|lab| lab.name.to_owned()).collect(), false),
        Some(Command::List) => {
            for lab in labs::ALL {
                println!("{:<12} {}", lab.name, lab.about);
            }
            return ExitCode::SUCCESS;
        }
        Some(Command::Run { names }) => (names, false),
        Some(Command::Up { name }) => (vec![name], true),
    };
    let mut chosen: Vec<&Lab> = Vec::new();
    for name in names {
        let Some(lab) = labs::ALL.iter().find(|lab| lab.name == name) else {
            eprintln!("no lab is called `{name}`: see `netns-lab list`");
            return ExitCode::from(2);
        };
        chosen.push(lab);
    }
    if let Some(missing) = missing_privilege() {
        eprintln!("netns-lab needs root on Linux ({missing}): sudo -E cargo run -p netns-lab");
        return ExitCode::from(2);
    }
    if stay { up(&chosen) } else { run(&chosen) }
}

fn run(chosen: &[&Lab]) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for lab in chosen {
        println!("{}: {}", lab.name, lab.about);
        let began = Instant::now();
        let report = lab.run();
        print!("{}", report.text());
        println!("  {:.1} s", began.elapsed().as_secs_f32());
        let (good, bad) = report.counts();
        passed += good;
        failed += bad;
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Leaves labs standing until this process ends, by `^C` or by the end of its input.
fn up(chosen: &[&Lab]) -> ExitCode {
    let mut worlds = Vec::new();
    for lab in chosen {
        match lab.up() {
            Ok(world) => worlds.push(world),
            Err(error) => {
                eprintln!("{}: {error:#}", lab.name);
                return ExitCode::FAILURE;
            }
        }
    }
    for place in worlds.iter().flat_map(World::places) {
        println!("{:<20} nsenter --net={}", place.name(), place.path());
    }
    println!("It stands until this ends: ^C, or Enter.");
    // However the wait ends, the lab goes down.
    let _ = io::stdin().read_line(&mut String::new());
    ExitCode::SUCCESS
}
