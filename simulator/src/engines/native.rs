//! `datapath-core` compiled for this machine, behind the same seam as the object. What it decides must be what the
//! object decides: the two are the same source, so a difference is a bug of a compiler, of an engine, or of the glue.

use std::cell::RefCell;

use datapath_abi::{Config, Direction, DropReason, Hook, MapId, config};
use datapath_core::pipeline::{self, from_container, from_host, from_netdev, from_overlay, to_container, to_netdev};
use datapath_core::{Action, Facts, Family, Packet, V4, V6, Verdict, reply};
use datapath_maps::{MapStore, MemoryMaps};
use simulator_vm::{Engine, Env, ProgramId, Redirect, Run, RunError, Skb, action};

use super::tables::{Frame, Tables};
use super::ticks;

/// Bytes of an Ethernet header: the shortest frame.
const SHORTEST: usize = 14;
/// As the object's engines: the longest frame.
const LONGEST: usize = 65_536 + 256;

/// See the module.
#[derive(Debug)]
pub struct Native {
    maps: RefCell<MemoryMaps>,
    config: Config,
}

/// How a program ended: with a code, or by asking for another program.
enum End {
    Code(i32),
    Call(u32),
}

type Program = fn(&mut Frame<'_>, &Tables<'_>, &mut Run) -> End;

/// Programs by name, sorted: [`ProgramId`] is the index.
const PROGRAMS: &[(&str, Program)] = &[
    ("arp", |skb, maps, run| go::<V4>(skb, maps, run, Hook::FromContainer, |p, t, f| reply::arp(p, t, f))),
    ("from_container", |skb, maps, run| {
        go::<V4>(skb, maps, run, Hook::FromContainer, |p, t, f| from_container::entry(p, t, f))
    }),
    ("from_container6", |skb, maps, run| {
        go::<V6>(skb, maps, run, Hook::FromContainer, |p, t, f| from_container::run(p, t, f))
    }),
    ("from_host", |skb, maps, run| go::<V4>(skb, maps, run, Hook::FromHost, |p, t, f| from_host::entry(p, t, f))),
    ("from_host6", |skb, maps, run| go::<V6>(skb, maps, run, Hook::FromHost, |p, t, f| from_host::run(p, t, f))),
    ("from_netdev", |skb, maps, run| go::<V4>(skb, maps, run, Hook::FromNetdev, |p, t, f| from_netdev::entry(p, t, f))),
    ("from_netdev6", |skb, maps, run| go::<V6>(skb, maps, run, Hook::FromNetdev, |p, t, f| from_netdev::run(p, t, f))),
    ("from_overlay", |skb, maps, run| {
        go::<V4>(skb, maps, run, Hook::FromOverlay, |p, t, f| from_overlay::entry(p, t, f))
    }),
    ("from_overlay6", |skb, maps, run| {
        go::<V6>(skb, maps, run, Hook::FromOverlay, |p, t, f| from_overlay::run(p, t, f))
    }),
    ("neighbour", |skb, maps, run| go::<V6>(skb, maps, run, Hook::FromContainer, |p, t, f| reply::on_link(p, t, f))),
    ("to_container", |skb, maps, run| {
        go::<V4>(skb, maps, run, Hook::ToContainer, |p, t, f| to_container::entry(p, t, f))
    }),
    ("to_container6", |skb, maps, run| {
        go::<V6>(skb, maps, run, Hook::ToContainer, |p, t, f| to_container::run(p, t, f))
    }),
    ("to_netdev", |skb, maps, run| go::<V4>(skb, maps, run, Hook::ToNetdev, |p, t, f| to_netdev::entry(p, t, f))),
    ("to_netdev6", |skb, maps, run| go::<V6>(skb, maps, run, Hook::ToNetdev, |p, t, f| to_netdev::run(p, t, f))),
];

/// Side that a hook counts packets for until more is known.
const fn direction(hook: Hook) -> Direction {
    match hook {
        Hook::FromContainer | Hook::ToNetdev | Hook::FromHost => Direction::Egress,
        Hook::ToContainer | Hook::FromOverlay | Hook::FromNetdev => Direction::Ingress,
    }
}

/// One program, as the object's `run` goes through it.
fn go<F: Family>(
    packet: &mut Frame<'_>,
    tables: &Tables<'_>,
    run: &mut Run,
    hook: Hook,
    path: impl FnOnce(&mut Frame<'_>, &Tables<'_>, &mut Facts<F>) -> pipeline::Outcome,
) -> End {
    let mut facts = Facts::new(hook, direction(hook), packet.ifindex(), packet.len());
    let outcome = match path(packet, tables, &mut facts) {
        Ok(Verdict { action: Action::Call, target }) => match called(tables, target) {
            // The tail call does not come back: this program neither counts nor reports.
            Some(program) => return End::Call(program),
            None => Err(DropReason::MissedTailCall),
        },
        Ok(verdict) => Ok(act(tables, packet.ifindex(), verdict, run)),
        Err(reason) => Err(reason),
    };
    End::Code(pipeline::finish(tables, &facts, outcome).unwrap_or(code(action::SHOT)))
}

fn code(action: u32) -> i32 {
    action.cast_signed()
}

fn called(tables: &Tables<'_>, slot: u32) -> Option<u32> {
    if tables.env.faults.tail_call {
        return None;
    }
    let mut maps = tables.maps.borrow_mut();
    let calls = maps.get_mut(MapId::Calls as usize)?;
    let slot = calls.find(&slot.to_ne_bytes())?;
    calls.values().get(calls.value_range(slot, 0))?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// What the object's helpers would do.
fn act(tables: &Tables<'_>, own: u32, verdict: Verdict, run: &mut Run) -> i32 {
    let target = match verdict.action {
        // A call that was not taken is a drop before this is asked.
        Action::Pass | Action::Call => return code(action::OK),
        Action::Deliver if tables.config.flags & config::REDIRECT_PEER != 0 => {
            Redirect::Peer { ifindex: verdict.target, flags: 0 }
        }
        Action::Deliver | Action::Forward => Redirect::Device { ifindex: verdict.target, flags: 0 },
        Action::Reflect => Redirect::Device { ifindex: own, flags: 0 },
        Action::Overlay => Redirect::Device { ifindex: tables.config.tunnel_ifindex, flags: 0 },
    };
    run.redirect = Some(target);
    code(action::REDIRECT)
}

impl Native {
    /// An engine over these maps, which must be those of the catalogue, in its order.
    #[must_use]
    pub fn new(config: &Config, maps: MemoryMaps) -> Self {
        Self { maps: RefCell::new(maps), config: *config }
    }

    /// All maps.
    pub fn memory_maps_mut(&mut self) -> &mut MemoryMaps {
        self.maps.get_mut()
    }
}

impl Engine for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn program(&self, name: &str) -> Option<ProgramId> {
        let index = PROGRAMS.binary_search_by_key(&name, |(name, _)| name).ok()?;
        u32::try_from(index).ok().map(ProgramId)
    }

    fn run(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        let len = skb.data.len();
        if !(SHORTEST..=LONGEST).contains(&len) {
            return Err(RunError::FrameSize { len, min: SHORTEST, max: LONGEST });
        }
        let readable = match usize::try_from(skb.linear_len) {
            Ok(0) | Err(_) => len,
            Ok(some) => some.clamp(SHORTEST, len),
        };
        let now = ticks(env.now_ns, env.ticks_per_second);
        let tables = Tables { maps: &self.maps, config: &self.config, env, now };
        let faults = &env.faults;
        let mut frame = Frame { skb, readable, faults, tunnel_key: None };
        let mut run = Run::default();
        let mut next = program.0;
        loop {
            let program = usize::try_from(next).ok().and_then(|index| PROGRAMS.get(index));
            let Some((_, program)) = program else {
                return Err(RunError::NoProgram { name: format!("#{next}") });
            };
            match program(&mut frame, &tables, &mut run) {
                End::Code(code) => {
                    run.code = code.cast_unsigned();
                    break;
                }
                End::Call(program) => next = program,
            }
        }
        if frame.skb.linear_len != 0 {
            frame.skb.linear_len = u32::try_from(frame.readable).unwrap_or(u32::MAX);
        }
        run.tunnel_key = frame.tunnel_key;
        self.maps.get_mut().end_run();
        Ok(run)
    }

    fn maps(&self) -> &dyn MapStore {
        self
    }

    fn maps_mut(&mut self) -> &mut dyn MapStore {
        self.maps.get_mut()
    }

    fn events(&mut self) -> Vec<Vec<u8>> {
        self.maps.get_mut().get_mut(MapId::Events as usize).map_or_else(Vec::new, |map| map.ring_drain())
    }
}

/// The maps are borrowed for the length of one operation.
impl MapStore for Native {
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, datapath_maps::MapError> {
        self.maps.borrow().lookup(map, key)
    }

    fn update(
        &mut self,
        map: MapId,
        key: &[u8],
        value: &[u8],
        mode: datapath_maps::UpdateMode,
    ) -> Result<(), datapath_maps::MapError> {
        self.maps.get_mut().update(map, key, value, mode)
    }

    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, datapath_maps::MapError> {
        self.maps.get_mut().delete(map, key)
    }

    fn entries(&self, map: MapId) -> Result<Vec<datapath_maps::Entry>, datapath_maps::MapError> {
        self.maps.borrow().entries(map)
    }
}
