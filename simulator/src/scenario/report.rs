//! What a run of a scenario has to say: nothing, or everything that a reader needs to see why.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datapath_abi::{DropReason, Hook, MapId};
use simulator_vm::{Checked, Engine, TraceEvent};

use super::run::{before, prepare, tables};
use super::state::{Clock, key_text, value_text};
use super::{Scenario, Step};
use crate::engines::{self, Kind, Limits, ticks};
use crate::packet;

/// One step that went wrong on some engines.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The step, from 1; 0: the state could not be written.
    pub step: usize,
    /// Its line.
    pub line: usize,
    /// What the step shows.
    pub note: String,
    /// Engines that are wrong in this way.
    pub engines: Vec<Kind>,
    /// The packet, as text.
    pub sent: String,
    /// What is wrong: expected and got, or one engine against another.
    pub problems: Vec<String>,
    /// What the checked engine did, step by step.
    pub trace: Vec<String>,
    /// The maps after the step.
    pub dump: String,
    /// How to run it alone.
    pub command: String,
}

impl Failure {
    pub(super) fn new(
        scenario: &Scenario,
        index: usize,
        step: &Step,
        engines: Vec<Kind>,
        problems: Vec<String>,
    ) -> Self {
        Self {
            step: index + 1,
            line: step.line,
            note: step.note.clone(),
            engines,
            sent: format!(
                "{} ifindex {}: {}",
                step.hook.name(),
                step.skb.ifindex,
                packet::describe(&step.skb.data, &step.defaults)
            ),
            problems,
            trace: Vec::new(),
            dump: String::new(),
            command: command(scenario),
        }
    }

    pub(super) fn setup(scenario: &Scenario, kind: Kind, problem: String) -> Self {
        Self {
            step: 0,
            line: 1,
            note: String::new(),
            engines: vec![kind],
            sent: String::new(),
            problems: vec![problem],
            trace: Vec::new(),
            dump: String::new(),
            command: command(scenario),
        }
    }
}

fn command(scenario: &Scenario) -> String {
    format!("cargo run --release -p simulator -- run {} --engine all", scenario.file)
}

/// A scenario's result.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file.
    pub file: String,
    /// Its title.
    pub title: String,
    /// Engines it ran on.
    pub engines: Vec<Kind>,
    /// Packets.
    pub steps: usize,
    /// Packets that the kernel's test-run could not carry.
    pub simulator_only: usize,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// Drop reasons that were seen.
    pub reasons: BTreeSet<DropReason>,
    /// Hooks that ran, and whether on IPv6.
    pub hooks: BTreeSet<(Hook, bool)>,
}

impl Report {
    pub(super) fn new(scenario: &Scenario, engines: &[Kind]) -> Self {
        Self {
            file: scenario.file.clone(),
            title: scenario.title.clone(),
            engines: engines.to_vec(),
            steps: scenario.steps.len(),
            simulator_only: 0,
            failures: Vec::new(),
            reasons: BTreeSet::new(),
            hooks: BTreeSet::new(),
        }
    }

    /// Whether all engines did what was expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed() {
            return write!(f, "ok    {} ({} packets)", self.file, self.steps);
        }
        writeln!(f, "FAIL  {}: {}", self.file, self.title)?;
        for failure in &self.failures {
            let engines: Vec<&str> = failure.engines.iter().map(|kind| kind.name()).collect();
            writeln!(f, "  {}:{} step {} on {}", self.file, failure.line, failure.step, engines.join(", "))?;
            if !failure.note.is_empty() {
                writeln!(f, "    {}", failure.note)?;
            }
            writeln!(f, "    sent {}", failure.sent)?;
            for problem in &failure.problems {
                writeln!(f, "    {problem}")?;
            }
            if !failure.trace.is_empty() {
                writeln!(f, "    trace (checked)")?;
                for line in &failure.trace {
                    writeln!(f, "      {line}")?;
                }
            }
            if !failure.dump.is_empty() {
                writeln!(f, "    maps afterwards")?;
                for line in failure.dump.lines() {
                    writeln!(f, "      {line}")?;
                }
            }
            writeln!(f, "    alone: {}", failure.command)?;
        }
        Ok(())
    }
}

/// Fills traces and dumps in: the scenario once more on the checked engine.
pub(super) fn explain(scenario: &Scenario, report: &mut Report) {
    let Ok(object) = engines::object(&scenario.config, &Limits::SMALL) else {
        return;
    };
    let Ok(mut engine) = Checked::new(Arc::new(object), 1) else {
        return;
    };
    if engines::fill_calls(Kind::Checked, &mut engine).is_err() || prepare(scenario, &mut engine).is_err() {
        return;
    }
    let mut now_ns = scenario.now_ns;
    for (index, step) in scenario.steps.iter().enumerate() {
        now_ns = now_ns.saturating_add(step.advance_ns);
        let per_second = scenario.config.ticks_per_second;
        let clock = Clock { now: ticks(now_ns, per_second), per_second };
        let Ok(env) = before(step, now_ns, &scenario.config, &mut engine) else {
            return;
        };
        let Some(program) = engine.program(step.hook.name()) else {
            return;
        };
        let mut skb = step.skb.clone();
        let (_, events) = engine.trace(program, &mut skb, &env);
        engine.events();
        let failures = report.failures.iter_mut().filter(|failure| failure.step == index + 1);
        for failure in failures {
            failure.trace = events.iter().filter_map(|event| trace_text(&engine, event, &clock)).collect();
            failure.dump = dump(&engine, &clock);
        }
    }
}

/// One line for what is worth one.
fn trace_text(engine: &Checked, event: &TraceEvent, clock: &Clock) -> Option<String> {
    let name = |program: &simulator_vm::ProgramId| {
        let program = usize::try_from(program.0).ok().and_then(|index| engine.object().programs().get(index));
        program.map_or("?", |program| program.name.as_str())
    };
    match event {
        TraceEvent::Step { .. } => None,
        TraceEvent::Helper { program, pc, helper, result, .. } => {
            let index = usize::try_from(program.0).ok()?;
            let line = engine.object().programs().get(index).and_then(|program| program.lines.at(*pc));
            let place = line.map_or(String::new(), |(file, line)| format!(" at {file}:{line}"));
            Some(format!("{}: {helper:?} = {:#x}{place}", name(program), result))
        }
        TraceEvent::Lookup { map, key, value } => {
            let id = MapId::from_name(map)?;
            let found = value.as_ref().map_or("nothing".to_owned(), |value| value_text(id, key, value, clock));
            Some(format!("  {map} {}: {found}", key_text(id, key)))
        }
        TraceEvent::TailCall { from, to } => Some(format!("{} calls {}", name(from), name(to))),
    }
}

/// Every entry, in the scenario's own words.
fn dump(engine: &dyn Engine, clock: &Clock) -> String {
    let mut out = String::new();
    for (map, entries) in tables(engine) {
        for (key, value) in entries {
            let text = value_text(map, &key, &value, clock);
            let line = match map {
                MapId::Ct4 | MapId::Ct6 | MapId::Frag4 | MapId::Frag6 => format!("{}: {text}\n", map.name()),
                MapId::Ipcache4
                | MapId::Ipcache6
                | MapId::Cidr4
                | MapId::Cidr6
                | MapId::Policy
                | MapId::Metrics
                | MapId::Events
                | MapId::Calls => format!("{}: {} = {text}\n", map.name(), key_text(map, &key)),
            };
            out += &line;
        }
    }
    out
}
