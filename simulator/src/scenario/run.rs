//! Runs a scenario on engines, and compares each with the expectation and all with each other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use datapath_abi::{Config, Direction, DropReason, Event, MapId, metrics, metrics_index};
use datapath_maps::{MapKind, MapSpec, UpdateMode};
use simulator_vm::{Engine, Env, Redirect, Run, Skb, action};
use zerocopy::{FromBytes, IntoBytes};

use super::report::{Failure, Report};
use super::state::{Clock, key_text, value_text};
use super::verdict::{Verdict, event_text};
use super::{Expect, Scenario, Step, report};
use crate::engines::{self, Kind, Limits, OpenError, ticks};
use crate::packet;

/// Engines that are open, by kind and settings: loading one takes longer than running a scenario on it.
pub struct EngineSet {
    kinds: Vec<Kind>,
    open: BTreeMap<(Kind, Vec<u8>), Box<dyn Engine>>,
}

impl EngineSet {
    /// Engines of these kinds, opened when they are needed.
    #[must_use]
    pub fn new(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), open: BTreeMap::new() }
    }

    /// Their kinds.
    #[must_use]
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// An empty engine with these settings.
    ///
    /// # Errors
    /// As [`engines::open`].
    pub fn engine(&mut self, kind: Kind, settings: &Config) -> Result<&mut dyn Engine, OpenError> {
        match self.open.entry((kind, settings.as_bytes().to_vec())) {
            Entry::Occupied(open) => {
                let engine = open.into_mut();
                engines::reset(kind, engine.as_mut())?;
                Ok(engine.as_mut())
            }
            Entry::Vacant(free) => Ok(free.insert(engines::open(kind, settings, Limits::SMALL)?).as_mut()),
        }
    }
}

/// Contents of the maps that are compared as they are.
pub(crate) type Tables = BTreeMap<MapId, BTreeMap<Vec<u8>, Vec<u8>>>;
/// Packets and bytes by index.
pub(crate) type Counters = BTreeMap<u32, (u64, u64)>;

/// What one engine did with one packet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) result: Result<(Verdict, Run), String>,
    pub(super) frame: Vec<u8>,
    pub(super) mark: u32,
    pub(super) cb: [u32; 5],
    pub(super) events: Vec<Event>,
    pub(super) counters: Counters,
    /// Entries that are new, other, or gone (`None`).
    pub(super) changes: BTreeMap<(MapId, Vec<u8>), Option<Vec<u8>>>,
}

/// Contents of every map but counters, events and calls.
pub(crate) fn tables(engine: &dyn Engine) -> Tables {
    let compared = |map: &MapId| match MapSpec::of(*map).kind {
        MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::PerCpuHash => true,
        MapKind::Array | MapKind::PerCpuArray | MapKind::ProgArray | MapKind::RingBuf => false,
    };
    let entries = |map: MapId| engine.maps().entries(map).unwrap_or_default().into_iter().collect();
    MapId::ALL.iter().copied().filter(compared).map(|map| (map, entries(map))).collect()
}

/// Sums over all CPUs of the counters that are not zero.
pub(crate) fn counters(engine: &dyn Engine) -> Counters {
    let sum = |(key, value): datapath_maps::Entry| {
        let index = key.first_chunk().map(|key| u32::from_ne_bytes(*key))?;
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let totals = value
            .chunks_exact(16)
            .fold((0, 0), |(packets, bytes), cpu| (packets + number(cpu), bytes + cpu.get(8..).map_or(0, number)));
        (totals != (0, 0)).then_some((index, totals))
    };
    engine.maps().entries(MapId::Metrics).unwrap_or_default().into_iter().filter_map(sum).collect()
}

/// Writes a scenario's state into an empty engine.
pub(super) fn prepare(scenario: &Scenario, engine: &mut dyn Engine) -> Result<(), String> {
    let maps = engine.maps_mut();
    for write in &scenario.writes {
        maps.update(write.map, &write.key, &write.value, UpdateMode::Any).map_err(|error| error.to_string())?;
    }
    for slot in &scenario.missing_calls {
        maps.delete(MapId::Calls, &(*slot as u32).to_ne_bytes()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What user space does before a step, and the surroundings of the run.
pub(super) fn before(step: &Step, now_ns: u64, settings: &Config, engine: &mut dyn Engine) -> Result<Env, String> {
    let maps = engine.maps_mut();
    for (map, key) in &step.deletes {
        maps.delete(*map, key).map_err(|error| error.to_string())?;
    }
    for write in &step.writes {
        maps.update(write.map, &write.key, &write.value, UpdateMode::Any).map_err(|error| error.to_string())?;
    }
    Ok(Env { now_ns, ticks_per_second: settings.ticks_per_second, faults: step.faults, ..Env::default() })
}

/// Reads the verdict off a run.
pub(crate) fn verdict(run: &Run, skb: &Skb, settings: &Config, reason: Option<DropReason>) -> Verdict {
    match (run.code, run.redirect) {
        (action::OK, _) => Verdict::Pass,
        (action::SHOT, _) => Verdict::Drop(reason),
        (action::REDIRECT, Some(Redirect::Peer { ifindex, flags: 0 })) => Verdict::Deliver(ifindex),
        (action::REDIRECT, Some(Redirect::Device { ifindex, flags: 0 })) => match run.tunnel_key {
            Some(key) if ifindex == settings.tunnel_ifindex => Verdict::Tunnel(key.id, key.remote),
            _ if ifindex == skb.ifindex => Verdict::Reflect,
            _ => Verdict::Redirect(ifindex),
        },
        (code, _) => Verdict::Code(code),
    }
}

/// What the maps hold as far as is known: reading them all once a step is enough, and costs most of the time on the
/// kernel's.
struct Known {
    tables: Tables,
    counters: Counters,
}

impl Known {
    fn read(engine: &dyn Engine) -> Self {
        Self { tables: tables(engine), counters: counters(engine) }
    }

    /// What user space has done before a step.
    fn apply(&mut self, step: &Step) {
        for (map, key) in &step.deletes {
            if let Some(entries) = self.tables.get_mut(map) {
                entries.remove(key);
            }
        }
        for write in &step.writes {
            self.tables.entry(write.map).or_default().insert(write.key.clone(), write.value.clone());
        }
    }
}

fn observe(step: &Step, env: &Env, settings: &Config, engine: &mut dyn Engine, known: &mut Known) -> Observed {
    let mut skb = step.skb.clone();
    let run = engine.run_named(step.hook.name(), &mut skb, env);
    let events: Vec<Event> = engine.events().iter().filter_map(|record| Event::read_from_bytes(record).ok()).collect();
    let old = std::mem::replace(known, Known::read(engine));
    let mut counted = known.counters.clone();
    for (index, (packets, bytes)) in &old.counters {
        if let Some(now) = counted.get_mut(index) {
            *now = (now.0.saturating_sub(*packets), now.1.saturating_sub(*bytes));
        }
    }
    counted.retain(|_, value| *value != (0, 0));
    let mut changes = BTreeMap::new();
    for (map, entries) in &known.tables {
        let before = old.tables.get(map);
        for (key, value) in entries {
            if before.and_then(|before| before.get(key)) != Some(value) {
                changes.insert((*map, key.clone()), Some(value.clone()));
            }
        }
    }
    for (map, entries) in &old.tables {
        for key in entries.keys() {
            if !known.tables.get(map).is_some_and(|now| now.contains_key(key)) {
                changes.insert((*map, key.clone()), None);
            }
        }
    }
    let from_event = events.iter().find(|event| event.kind == datapath_abi::EventKind::Drop as u8);
    let reason = match from_event {
        Some(event) => DropReason::from_number(event.code),
        None => counted.keys().find_map(|index| DropReason::from_number(index.to_le_bytes()[0])),
    };
    let result = match run {
        Ok(run) => {
            let run = Run { instructions: 0, lookups: 0, helper_calls: 0, ..run };
            Ok((verdict(&run, &step.skb, settings, reason), run))
        }
        Err(error) => Err(error.to_string()),
    };
    Observed { result, frame: skb.data, mark: skb.mark, cb: skb.cb, events, counters: counted, changes }
}

/// What an engine did with every step; `None`: this engine cannot carry the step.
type Course = Vec<Option<Observed>>;

fn course(scenario: &Scenario, kind: Kind, engine: &mut dyn Engine) -> Result<Course, String> {
    prepare(scenario, engine)?;
    let mut known = Known::read(engine);
    let mut now_ns = scenario.now_ns;
    let mut out = Vec::new();
    let mut lost = false;
    for step in &scenario.steps {
        now_ns = now_ns.saturating_add(step.advance_ns);
        let env = before(step, now_ns, &scenario.config, engine)?;
        known.apply(step);
        // A frame that the kernel refuses changes no flow: later steps still are comparable. A fault it cannot have
        // does.
        let short = kind == Kind::Kernel && step.skb.data.len() < engines::shortest(&step.skb.data);
        lost |= kind == Kind::Kernel && engines::unsupported(&step.skb, &env).is_some();
        if short || lost {
            out.push(None);
        } else {
            out.push(Some(observe(step, &env, &scenario.config, engine, &mut known)));
        }
    }
    Ok(out)
}

/// Runs a scenario on all engines of the set.
///
/// # Errors
/// An engine that cannot be opened. What an engine does wrong is in the report.
pub fn run(scenario: &Scenario, engines: &mut EngineSet) -> Result<Report, OpenError> {
    let mut report = Report::new(scenario, engines.kinds());
    let mut courses: Vec<(Kind, Course)> = Vec::new();
    for kind in engines.kinds().to_vec() {
        let engine = engines.engine(kind, &scenario.config)?;
        match course(scenario, kind, engine) {
            Ok(course) => courses.push((kind, course)),
            Err(problem) => report.failures.push(Failure::setup(scenario, kind, problem)),
        }
    }
    let mut now_ns = scenario.now_ns;
    for (index, step) in scenario.steps.iter().enumerate() {
        now_ns = now_ns.saturating_add(step.advance_ns);
        let per_second = scenario.config.ticks_per_second;
        let clock = Clock { now: ticks(now_ns, per_second), per_second };
        let of_step = |(kind, course): &(Kind, Course)| {
            course.get(index).and_then(Option::as_ref).map(|observed| (*kind, observed.clone()))
        };
        let observed: Vec<(Kind, Observed)> = courses.iter().filter_map(of_step).collect();
        report.simulator_only += usize::from(observed.len() < courses.len());
        compare(scenario, index, step, &clock, &observed, &mut report);
    }
    if !report.failures.is_empty() {
        report::explain(scenario, &mut report);
    }
    Ok(report)
}

fn compare(
    scenario: &Scenario,
    index: usize,
    step: &Step,
    clock: &Clock,
    observed: &[(Kind, Observed)],
    report: &mut Report,
) {
    // Engines that are wrong in the same way are one failure.
    let mut problems: BTreeMap<Vec<String>, Vec<Kind>> = BTreeMap::new();
    for (kind, seen) in observed {
        if let Ok((Verdict::Drop(Some(reason)), _)) = &seen.result {
            report.reasons.insert(*reason);
        }
        report.hooks.insert((step.hook, is_v6(&step.skb.data)));
        let mut found = Vec::new();
        if let Err(error) = &seen.result
            && step.skb.data.len() >= 14
        {
            found.push(format!("the engine failed: {error}"));
        }
        if let Some(expect) = &step.expect {
            check(expect, step, seen, clock, &mut found);
        }
        if !found.is_empty() {
            problems.entry(found).or_default().push(*kind);
        }
    }
    if let [(first, base), others @ ..] = observed {
        for (kind, seen) in others {
            let mut found = Vec::new();
            differences(*first, base, *kind, seen, step, clock, &mut found);
            if !found.is_empty() {
                problems.entry(found).or_default().push(*kind);
            }
        }
    }
    for (problems, kinds) in problems {
        report.failures.push(Failure::new(scenario, index, step, kinds, problems));
    }
}

fn is_v6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

fn differs(what: &str, expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display, found: &mut Vec<String>) {
    found.push(format!("{what}\n      expected  {expected}\n      got       {got}"));
}

fn counter_text(index: u32) -> String {
    let [reason, direction, ..] = index.to_le_bytes();
    let direction = if direction == Direction::Ingress as u8 { "ingress" } else { "egress" };
    let reason = match (reason, DropReason::from_number(reason)) {
        (metrics::FORWARDED, _) => "forwarded".to_owned(),
        (metrics::EVENT_LOST, _) => "event-lost".to_owned(),
        (_, Some(reason)) => reason.name().to_owned(),
        (number, None) => number.to_string(),
    };
    format!("{direction} {reason}")
}

fn counters_text(counters: &Counters) -> String {
    let each = |(index, (packets, bytes)): (&u32, &(u64, u64))| {
        format!("{} = {packets} ({bytes} bytes)", counter_text(*index))
    };
    if counters.is_empty() {
        return "none".to_owned();
    }
    counters.iter().map(each).collect::<Vec<_>>().join(", ")
}

fn check(expect: &Expect, step: &Step, seen: &Observed, clock: &Clock, found: &mut Vec<String>) {
    let Ok((verdict, _)) = &seen.result else {
        return;
    };
    if *verdict != expect.verdict {
        differs("verdict", &expect.verdict, verdict, found);
    }
    if seen.frame != expect.frame {
        let text = |frame: &[u8]| packet::describe(frame, &step.defaults);
        differs("packet", &text(&expect.frame), &text(&seen.frame), found);
    }
    if seen.mark != step.skb.mark || seen.cb != step.skb.cb {
        differs("mark", &step.skb.mark, &seen.mark, found);
    }
    check_counters(expect, step, seen, found);
    check_events(expect, step, seen, found);
    let mut unlisted = seen.changes.clone();
    let mut listed = |map: MapId, key: &[u8], matches: &dyn Fn(&[u8]) -> bool| {
        let name = key_text(map, key);
        match unlisted.remove(&(map, key.to_vec())) {
            Some(Some(value)) if matches(&value) => {}
            Some(Some(value)) => {
                found.push(format!("{} is not as listed: {}", map.name(), value_text(map, key, &value, clock)));
            }
            Some(None) | None => found.push(format!("{}: {name} did not change, but is listed", map.name())),
        }
    };
    for flow in &expect.ct {
        listed(flow.map, &flow.key, &|value| flow.matches(value, clock));
    }
    for part in &expect.frag {
        listed(part.map, &part.key, &|value| part.matches(value, clock));
    }
    for ((map, key), value) in &unlisted {
        found.push(format!(
            "{} changed and is not listed: {}",
            map.name(),
            change_text(*map, key, value.as_deref(), clock)
        ));
    }
}

fn change_text(map: MapId, key: &[u8], value: Option<&[u8]>, clock: &Clock) -> String {
    match value {
        Some(value) => value_text(map, key, value, clock),
        None => format!("{} is gone", key_text(map, key)),
    }
}

fn check_counters(expect: &Expect, step: &Step, seen: &Observed, found: &mut Vec<String>) {
    let len = u64::try_from(step.skb.data.len()).unwrap_or(u64::MAX);
    if let Some(wanted) = &expect.counters {
        let wanted: Counters = wanted
            .iter()
            .filter(|(_, packets)| **packets != 0)
            .map(|((direction, reason), packets)| (metrics_index(*direction, *reason), (*packets, packets * len)))
            .collect();
        if wanted != seen.counters {
            differs("counters", &counters_text(&wanted), &counters_text(&seen.counters), found);
        }
        return;
    }
    let reason = match expect.verdict {
        Verdict::Drop(reason) => reason.map_or(0, |reason| reason as u8),
        Verdict::Pass
        | Verdict::Deliver(_)
        | Verdict::Redirect(_)
        | Verdict::Reflect
        | Verdict::Tunnel(..)
        | Verdict::Code(_) => metrics::FORWARDED,
    };
    let right = |(index, value): (&u32, &(u64, u64))| index.to_le_bytes()[0] == reason && *value == (1, len);
    let most = if reason == metrics::FORWARDED { 2 } else { 1 };
    if seen.counters.is_empty() || seen.counters.len() > most || !seen.counters.iter().all(right) {
        let name = DropReason::from_number(reason).map_or("forwarded", DropReason::name);
        differs("counters", &format_args!("{name} = 1 ({len} bytes)"), &counters_text(&seen.counters), found);
    }
}

fn check_events(expect: &Expect, step: &Step, seen: &Observed, found: &mut Vec<String>) {
    let drops: Vec<&Event> =
        seen.events.iter().filter(|event| event.kind == datapath_abi::EventKind::Drop as u8).collect();
    let wanted = match expect.verdict {
        Verdict::Drop(Some(reason)) if !step.faults.ring_full => Some(reason),
        Verdict::Drop(_)
        | Verdict::Pass
        | Verdict::Deliver(_)
        | Verdict::Redirect(_)
        | Verdict::Reflect
        | Verdict::Tunnel(..)
        | Verdict::Code(_) => None,
    };
    let right = match (wanted, drops.as_slice()) {
        (Some(reason), [event]) => event.code == reason as u8,
        (None, []) => true,
        (Some(_) | None, _) => false,
    };
    let texts: Vec<String> = seen.events.iter().map(event_text).collect();
    if !right {
        let wanted = wanted.map_or("none".to_owned(), |reason| reason.name().to_owned());
        differs("drop event", &wanted, &texts.join("; "), found);
    }
    if let Some(wanted) = &expect.events {
        let same = wanted.len() == seen.events.len()
            && wanted.iter().zip(&seen.events).all(|(wanted, event)| wanted.matches(event));
        if !same {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let list = |texts: &[String]| {
                if texts.is_empty() { "none".to_owned() } else { texts.join("\n                ") }
            };
            differs("events", &list(&wanted), &list(&texts), found);
        }
    }
}

fn differences(
    first: Kind,
    base: &Observed,
    kind: Kind,
    seen: &Observed,
    step: &Step,
    clock: &Clock,
    found: &mut Vec<String>,
) {
    let mut differ = |what: &str, a: String, b: String| {
        found.push(format!("{what} differs\n      {first}  {a}\n      {kind}  {b}"));
    };
    let outcome = |seen: &Observed| match &seen.result {
        Ok((verdict, run)) => Ok((*verdict, *run)),
        // The engines say in their own words what a frame is too short for.
        Err(_) => Err(()),
    };
    if outcome(base) != outcome(seen) {
        differ("verdict", format!("{:?}", base.result), format!("{:?}", seen.result));
    }
    if base.frame != seen.frame {
        let text = |frame: &[u8]| packet::describe(frame, &step.defaults);
        differ("packet", text(&base.frame), text(&seen.frame));
    }
    if (base.mark, base.cb) != (seen.mark, seen.cb) {
        differ("mark or cb", format!("{:?}", (base.mark, base.cb)), format!("{:?}", (seen.mark, seen.cb)));
    }
    if base.events != seen.events {
        let text = |seen: &Observed| seen.events.iter().map(event_text).collect::<Vec<_>>().join("; ");
        differ("events", text(base), text(seen));
    }
    if base.counters != seen.counters {
        differ("counters", counters_text(&base.counters), counters_text(&seen.counters));
    }
    if base.changes != seen.changes {
        let text = |seen: &Observed| {
            let each = |((map, key), value): (&(MapId, Vec<u8>), &Option<Vec<u8>>)| {
                format!("{}: {}", map.name(), change_text(*map, key, value.as_deref(), clock))
            };
            seen.changes.iter().map(each).collect::<Vec<_>>().join("; ")
        };
        differ("map changes", text(base), text(seen));
    }
}
