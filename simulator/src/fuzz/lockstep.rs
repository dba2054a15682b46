//! Engines that go through the same packets side by side.

use std::collections::BTreeMap;

use datapath_abi::{Config, DropReason, Event, EventKind, MapId};
use datapath_maps::UpdateMode;
use simulator_vm::{Engine, Run, RunError, action};
use zerocopy::{FromBytes, IntoBytes};

use super::Outcome;
use crate::engines::{self, Kind, Limits, OpenError};
use crate::scenario::{self, Scenario, Step};

type Opened = Vec<(Kind, Box<dyn Engine>)>;

pub(super) struct Lockstep {
    kinds: Vec<Kind>,
    limits: Limits,
    open: BTreeMap<Vec<u8>, Opened>,
    /// Settings in force.
    current: Vec<u8>,
    ticks_per_second: u32,
}

impl Lockstep {
    pub(super) fn new(kinds: &[Kind], limits: Limits) -> Self {
        Self { kinds: kinds.to_vec(), limits, open: BTreeMap::new(), current: Vec::new(), ticks_per_second: 0 }
    }

    /// Engines that somebody else has opened, for these settings.
    #[cfg(test)]
    pub(super) fn of(engines: Opened, settings: &Config) -> Self {
        let mut all = Self::new(&[], Limits::SMALL);
        all.open.insert(settings.as_bytes().to_vec(), engines);
        all
    }

    fn open(&mut self, settings: &Config) -> Result<(), OpenError> {
        self.current = settings.as_bytes().to_vec();
        self.ticks_per_second = settings.ticks_per_second;
        if let Some(engines) = self.open.get_mut(&self.current) {
            for (kind, engine) in engines {
                engines::reset(*kind, engine.as_mut())?;
            }
            return Ok(());
        }
        let engines: Result<Opened, OpenError> =
            self.kinds.iter().map(|kind| Ok((*kind, engines::open(*kind, settings, self.limits)?))).collect();
        self.open.insert(self.current.clone(), engines?);
        Ok(())
    }

    fn engines(&mut self) -> &mut [(Kind, Box<dyn Engine>)] {
        self.open.get_mut(&self.current).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Empty engines with the state of a scenario.
    pub(super) fn begin(&mut self, scenario: &Scenario) -> Result<(), OpenError> {
        self.open(&scenario.config)?;
        for (kind, engine) in self.engines() {
            for write in &scenario.writes {
                engine
                    .maps_mut()
                    .update(write.map, &write.key, &write.value, UpdateMode::Any)
                    .map_err(|source| OpenError::Map { engine: *kind, source })?;
            }
            for slot in &scenario.missing_calls {
                engine
                    .maps_mut()
                    .delete(MapId::Calls, &(*slot as u32).to_ne_bytes())
                    .map_err(|source| OpenError::Map { engine: *kind, source })?;
            }
        }
        Ok(())
    }

    /// One packet through every engine; what differs.
    pub(super) fn step(&mut self, step: &Step, now_ns: u64, outcome: &mut Outcome) -> Option<String> {
        let env = simulator_vm::Env {
            now_ns,
            ticks_per_second: self.ticks_per_second,
            faults: step.faults,
            ..simulator_vm::Env::default()
        };
        let mut first: Option<(Kind, Seen)> = None;
        for (kind, engine) in self.engines() {
            for (map, key) in &step.deletes {
                if let Err(error) = engine.maps_mut().delete(*map, key) {
                    return Some(format!("{kind}: {error}"));
                }
            }
            for write in &step.writes {
                if let Err(error) = engine.maps_mut().update(write.map, &write.key, &write.value, UpdateMode::Any) {
                    return Some(format!("{kind}: {error}"));
                }
            }
            let mut skb = step.skb.clone();
            let run = engine.run_named(step.hook.name(), &mut skb, &env);
            let seen = Seen {
                run: run.map(|run| Run { instructions: 0, lookups: 0, helper_calls: 0, ..run }),
                events: engine.events(),
                state: (skb.mark, skb.cb),
                frame: skb.data,
            };
            if let Err(error) = &seen.run {
                return Some(format!("{kind} failed: {error}"));
            }
            match &first {
                None => first = Some((*kind, seen)),
                Some((_, base)) if *base == seen => {}
                Some((base_kind, base)) => {
                    return Some(format!("{base_kind}: {base:?}\n{kind}: {seen:?}"));
                }
            }
        }
        if let Some((_, seen)) = &first {
            seen.count(outcome);
        }
        None
    }

    /// Compares all maps and counters.
    pub(super) fn settle(&mut self) -> Option<String> {
        let mut first = None;
        for (kind, engine) in self.engines() {
            let now = (scenario::tables(engine.as_ref()), scenario::counters(engine.as_ref()));
            match &first {
                None => first = Some((*kind, now)),
                Some((_, base)) if *base == now => {}
                Some((base_kind, base)) => {
                    for (map, entries) in &base.0 {
                        if now.0.get(map) != Some(entries) {
                            return Some(format!("{base_kind} and {kind} differ in map {}", map.name()));
                        }
                    }
                    return Some(format!("{base_kind} and {kind} differ in counters"));
                }
            }
        }
        None
    }

    /// Whether a scenario's packets make a difference.
    pub(super) fn differ(&mut self, scenario: &Scenario) -> Result<bool, OpenError> {
        self.begin(scenario)?;
        let mut now_ns = scenario.now_ns;
        let mut outcome = Outcome::default();
        for step in &scenario.steps {
            now_ns += step.advance_ns;
            if self.step(step, now_ns, &mut outcome).is_some() {
                return Ok(true);
            }
        }
        Ok(self.settle().is_some())
    }
}

/// What an engine did with one packet.
#[derive(Debug, PartialEq)]
struct Seen {
    run: Result<Run, RunError>,
    events: Vec<Vec<u8>>,
    state: (u32, [u32; 5]),
    frame: Vec<u8>,
}

impl Seen {
    fn count(&self, outcome: &mut Outcome) {
        if self.run.as_ref().is_ok_and(|run| run.code != action::SHOT) {
            outcome.forwarded += 1;
            return;
        }
        for record in &self.events {
            if let Ok(event) = Event::read_from_bytes(record)
                && event.kind == EventKind::Drop as u8
                && let Some(reason) = DropReason::from_number(event.code)
            {
                outcome.reasons.insert(reason);
            }
        }
    }
}
