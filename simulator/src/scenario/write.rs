//! A scenario as a file again: what fuzzing writes. Only what the engines must agree on, no expectations.

use std::fmt::Write as _;

use datapath_abi::{CallSlot, Config, MapId, config};

use super::build::settings;
use super::state::{Clock, Write, key_text, value_text};
use super::{Scenario, Step};
use crate::engines::ticks;
use crate::packet::{self, Defaults};

/// Ethernet addresses that no packet has: so that all are written out.
const NOBODY: Defaults = Defaults { source: [1, 3, 5, 7, 9, 11], destination: [11, 9, 7, 5, 3, 1] };

/// The file.
#[must_use]
pub fn to_toml(scenario: &Scenario) -> String {
    let mut out = String::new();
    let per_second = scenario.config.ticks_per_second;
    let mut clock = Clock { now: ticks(scenario.now_ns, per_second), per_second };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "title = {:?}\nsource = {:?}\ncompare_only = true", scenario.title, scenario.source);
    let _ = writeln!(out, "now = \"{}ns\"", scenario.now_ns);
    let _ = writeln!(out, "config = {{ {} }}", settings_text(&scenario.config));
    if !scenario.missing_calls.is_empty() {
        let name = |slot: &CallSlot| CallSlot::ALL.iter().find(|(known, _)| known == slot).map_or("", |(_, name)| name);
        let names: Vec<&str> = scenario.missing_calls.iter().map(name).collect();
        let _ = writeln!(out, "missing_calls = {names:?}");
    }
    for (list, maps) in [("ct", [MapId::Ct4, MapId::Ct6]), ("frag", [MapId::Frag4, MapId::Frag6])] {
        let lines: Vec<String> = scenario
            .writes
            .iter()
            .filter(|write| maps.contains(&write.map))
            .map(|write| value_text(write.map, &write.key, &write.value, &clock))
            .collect();
        if !lines.is_empty() {
            let _ = writeln!(out, "{list} = {lines:?}");
        }
    }
    for line in tables(&scenario.writes, &clock) {
        let _ = writeln!(out, "{line}");
    }
    let mut now_ns = scenario.now_ns;
    for step in &scenario.steps {
        now_ns = now_ns.saturating_add(step.advance_ns);
        clock.now = ticks(now_ns, per_second);
        step_text(&mut out, step, &clock);
    }
    out
}

fn settings_text(settings_: &Config) -> String {
    let base = settings();
    let mut words: Vec<String> = [
        (config::TUNNEL, "tunnel"),
        (config::REDIRECT_PEER, "redirect_peer"),
        (config::VERDICT_EVENTS, "verdict_events"),
        (config::TRACE_EVENTS, "trace_events"),
        (config::DUAL_STACK, "dual_stack"),
        (config::HOST_POLICY, "host_policy"),
        (config::GENEVE, "geneve"),
    ]
    .iter()
    .map(|(bit, name)| format!("{name} = {}", settings_.flags & bit != 0))
    .collect();
    if settings_.magic != base.magic {
        words.push("written = false".to_owned());
    }
    if settings_.ticks_per_second != base.ticks_per_second {
        words.push(format!("ticks_per_second = {}", settings_.ticks_per_second));
    }
    words.join(", ")
}

/// Lines of the tables that are written key by key; the last write of a key is the one that counts.
fn tables(writes: &[Write], clock: &Clock) -> Vec<String> {
    let mut lines = std::collections::BTreeMap::new();
    for write in writes {
        let table = match write.map {
            MapId::Ipcache4 | MapId::Ipcache6 => "ipcache",
            MapId::Cidr4 | MapId::Cidr6 => "cidr",
            MapId::Policy => "policy",
            MapId::Ct4 | MapId::Ct6 | MapId::Frag4 | MapId::Frag6 | MapId::Metrics | MapId::Events | MapId::Calls => {
                continue;
            }
        };
        let value = value_text(write.map, &write.key, &write.value, clock);
        lines.insert(format!("{table}.{:?}", key_text(write.map, &write.key)), value);
    }
    lines.into_iter().map(|(key, value)| format!("{key} = {value:?}")).collect()
}

fn step_text(out: &mut String, step: &Step, clock: &Clock) {
    let skb = &step.skb;
    let _ = writeln!(out, "\n[[step]]\nhook = {:?}\nifindex = {}", step.hook.name(), skb.ifindex);
    if skb.mark != 0 {
        let _ = writeln!(out, "mark = {}", skb.mark);
    }
    if skb.linear_len != 0 {
        let _ = writeln!(out, "linear = {}", skb.linear_len);
    }
    if let Some(key) = &skb.tunnel_key {
        let _ = writeln!(out, "tunnel = {{ id = {}, remote = \"{}\" }}", key.id, key.remote);
    }
    if step.advance_ns != 0 {
        let _ = writeln!(out, "advance = \"{}ns\"", step.advance_ns);
    }
    for (name, maps) in
        [("remove_ipcache", [MapId::Ipcache4, MapId::Ipcache6]), ("remove_policy", [MapId::Policy, MapId::Policy])]
    {
        let lines: Vec<String> =
            step.deletes.iter().filter(|(map, _)| maps.contains(map)).map(|(map, key)| key_text(*map, key)).collect();
        if !lines.is_empty() {
            let _ = writeln!(out, "{name} = {lines:?}");
        }
    }
    for line in tables(&step.writes, clock) {
        let _ = writeln!(out, "{line}");
    }
    let faults: Vec<&str> = [
        (step.faults.map_update, "map_update_fails = true"),
        (step.faults.set_tunnel_key, "set_tunnel_key_fails = true"),
        (step.faults.get_tunnel_key, "get_tunnel_key_fails = true"),
        (step.faults.ring_full, "ring_full = true"),
        (step.faults.packet_memory, "packet_memory_fails = true"),
    ]
    .iter()
    .filter(|(on, _)| *on)
    .map(|(_, text)| *text)
    .collect();
    if !faults.is_empty() {
        let _ = writeln!(out, "faults = {{ {} }}", faults.join(", "));
    }
    let _ = writeln!(out, "send = {:?}", packet::describe(&skb.data, &NOBODY));
}
