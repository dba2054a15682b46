//! The smallest node that packets can meet: a frame in a buffer, tables in ordinary collections.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;

use datapath_abi::policy::{EGRESS, FIXED_BITS, INGRESS};
use datapath_abi::{
    Addr4, Addr6, CallSlot, Config, CtEntry, CtKey4, CtKey6, Direction, DropReason, Event, EventKind, FragEntry,
    FragKey4, FragKey6, Hook, IpEntry, IpFlags, Mac, PolicyEntry, PolicyKey, config, metrics_index,
};
use datapath_core::pipeline::{self, from_container, from_host, from_netdev, from_overlay, to_container, to_netdev};
use datapath_core::tables::{CtTable, FragTable, IpTable, Node, NodeTable, PolicyTable, TableFull};
use datapath_core::{Action, Facts, Family, Packet, TunnelKey, V4, V6, Verdict, reply};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const POD: u32 = 10;
pub const NEIGHBOUR: u32 = 11;
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const POD4: [u8; 4] = [10, 0, 0, 1];
pub const NEIGHBOUR4: [u8; 4] = [10, 0, 0, 2];
pub const REMOTE4: [u8; 4] = [10, 0, 1, 1];
pub const NODE4: [u8; 4] = [192, 0, 2, 1];
pub const OTHER_NODE4: [u8; 4] = [192, 0, 2, 2];

/// The IPv6 address of whoever has this IPv4 address.
pub fn wide(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// A frame of which the first `readable` bytes can be loaded, as of an skb whose data is in pages.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub readable: usize,
    pub ifindex: u32,
    pub mark: u32,
    pub key: Option<TunnelKey>,
    pub sent: Option<u32>,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, readable: usize, ifindex: u32) -> Self {
        let readable = readable.min(bytes.len());
        let remote = Addr6::from_v4(Addr4::from_octets(OTHER_NODE4));
        let key = TunnelKey { id: 300, remote, underlay6: false };
        Self { bytes, readable, ifindex, mark: 0, key: Some(key), sent: None }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn pull(&mut self, len: u32) {
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(self.bytes.len());
        self.readable = self.readable.max(wanted);
    }

    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes[..self.readable].get(offset..offset.checked_add(size_of::<T>())?)?;
        T::read_from_bytes(bytes).ok()
    }

    fn store<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.bytes[..self.readable].get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        place.copy_from_slice(value.as_bytes());
        Some(())
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn tunnel_key(&self) -> Option<TunnelKey> {
        self.key
    }

    fn set_tunnel_key(&mut self, identity: u32, _: &IpEntry) -> Option<()> {
        self.sent = Some(identity);
        Some(())
    }
}

/// Tables of a node with two pods, one pod elsewhere and two nodes.
pub struct World {
    config: Config,
    pub now: u64,
    owners: BTreeMap<Vec<u8>, IpEntry>,
    policy: Vec<(PolicyKey, PolicyEntry)>,
    flows: RefCell<BTreeMap<Vec<u8>, CtEntry>>,
    fragments: RefCell<BTreeMap<Vec<u8>, FragEntry>>,
    pub counters: RefCell<BTreeMap<u32, u64>>,
    pub events: RefCell<Vec<Event>>,
}

impl World {
    /// Policies allow everything (`open`) or nothing.
    pub fn new(open: bool) -> Self {
        let mut config = Config::with_defaults(1000);
        config.host_mac = Mac::from_octets(HOST_MAC);
        config.flags |= config::DUAL_STACK;
        let node = |address| Addr6::from_v4(Addr4::from_octets(address));
        let entry = |identity, endpoint, ifindex, flags, node| IpEntry {
            identity,
            ifindex,
            endpoint,
            node,
            policy_revision: 1,
            flags: IpFlags(flags),
            mac: Mac::from_octets([2, 0, 0, 0, 1, u8::try_from(endpoint).unwrap_or(0)]),
            pad: [0; 2],
        };
        let mut owners = BTreeMap::new();
        for (address, entry) in [
            (POD4, entry(300, 7, POD, IpFlags::POD, Addr6::ZERO)),
            (NEIGHBOUR4, entry(301, 8, NEIGHBOUR, IpFlags::POD, Addr6::ZERO)),
            (REMOTE4, entry(302, 0, 0, IpFlags::POD, node(OTHER_NODE4))),
            (NODE4, entry(1, 0, 0, IpFlags::NODE | IpFlags::LOCAL_HOST, Addr6::ZERO)),
            (OTHER_NODE4, entry(6, 0, 0, IpFlags::NODE, Addr6::ZERO)),
        ] {
            owners.insert(address.to_vec(), entry);
            owners.insert(wide(address).to_vec(), entry);
        }
        let mut policy = Vec::new();
        for (endpoint, direction) in [(7, EGRESS), (7, INGRESS), (8, EGRESS), (8, INGRESS)] {
            if open {
                let key = PolicyKey { prefix_len: FIXED_BITS, endpoint, direction, ..PolicyKey::default() };
                policy.push((key, PolicyEntry { precedence: 1, rule: 1, ..PolicyEntry::default() }));
            }
        }
        Self {
            config,
            now: 1_000_000,
            owners,
            policy,
            flows: RefCell::default(),
            fragments: RefCell::default(),
            counters: RefCell::default(),
            events: RefCell::default(),
        }
    }

    /// One packet at one hook, continuations and all, as the object runs it.
    pub fn run(&self, hook: Hook, frame: &mut Frame) -> Result<Verdict, DropReason> {
        let direction = match hook {
            Hook::FromContainer | Hook::ToNetdev | Hook::FromHost => Direction::Egress,
            Hook::ToContainer | Hook::FromOverlay | Hook::FromNetdev => Direction::Ingress,
        };
        let four = |frame: &mut Frame, path: &dyn Fn(&mut Frame, &mut Facts<V4>) -> pipeline::Outcome| {
            let mut facts = Facts::<V4>::new(hook, direction, frame.ifindex, frame.len());
            let outcome = path(frame, &mut facts);
            self.finish(&facts, outcome)
        };
        let outcome = four(frame, &|frame, facts| match hook {
            Hook::FromContainer => from_container::entry(frame, self, facts),
            Hook::ToContainer => to_container::entry(frame, self, facts),
            Hook::FromOverlay => from_overlay::entry(frame, self, facts),
            Hook::FromNetdev => from_netdev::entry(frame, self, facts),
            Hook::ToNetdev => to_netdev::entry(frame, self, facts),
            Hook::FromHost => from_host::entry(frame, self, facts),
        })?;
        if outcome.action != Action::Call {
            return Ok(outcome);
        }
        if outcome.target == CallSlot::Arp as u32 {
            return four(frame, &|frame, facts| reply::arp(frame, self, facts));
        }
        let six = |frame: &mut Frame, neighbour: bool| {
            let mut facts = Facts::<V6>::new(hook, direction, frame.ifindex, frame.len());
            let outcome = match hook {
                Hook::FromContainer if neighbour => reply::on_link(frame, self, &mut facts),
                Hook::FromContainer => from_container::run(frame, self, &mut facts),
                Hook::ToContainer => to_container::run(frame, self, &mut facts),
                Hook::FromOverlay => from_overlay::run(frame, self, &mut facts),
                Hook::FromNetdev => from_netdev::run(frame, self, &mut facts),
                Hook::ToNetdev => to_netdev::run(frame, self, &mut facts),
                Hook::FromHost => from_host::run(frame, self, &mut facts),
            };
            self.finish(&facts, outcome)
        };
        let outcome = six(frame, false)?;
        if outcome.action == Action::Call { six(frame, true) } else { Ok(outcome) }
    }

    /// A tail call does not return, so what calls is not counted.
    fn finish<F: Family>(&self, facts: &Facts<F>, outcome: pipeline::Outcome) -> Result<Verdict, DropReason> {
        match outcome {
            Ok(verdict) if verdict.action == Action::Call => Ok(verdict),
            other => pipeline::finish(self, facts, other),
        }
    }
}

macro_rules! family {
    ($family:ty, $addr:ty, $ct:ty, $frag:ty) => {
        impl IpTable<$family> for World {
            type Entry<'a> = &'a IpEntry;

            fn owner(&self, address: &$addr) -> Option<&IpEntry> {
                self.owners.get(address.octets().as_slice())
            }

            fn prefix_owner(&self, _: &$addr) -> Option<&IpEntry> {
                None
            }
        }

        impl CtTable<$family> for World {
            type Flow<'a> = RefMut<'a, CtEntry>;

            fn flow(&self, key: &$ct) -> Option<RefMut<'_, CtEntry>> {
                RefMut::filter_map(self.flows.borrow_mut(), |flows| flows.get_mut(key.as_bytes())).ok()
            }

            fn remember_flow(&self, key: &$ct, entry: &CtEntry) -> Result<(), TableFull> {
                self.flows.borrow_mut().insert(key.as_bytes().to_vec(), *entry);
                Ok(())
            }
        }

        impl FragTable<$family> for World {
            fn fragment(&self, key: &$frag) -> Option<FragEntry> {
                self.fragments.borrow().get(key.as_bytes()).copied()
            }

            fn remember_fragment(&self, key: &$frag, entry: &FragEntry) {
                self.fragments.borrow_mut().insert(key.as_bytes().to_vec(), *entry);
            }
        }
    };
}

family!(V4, Addr4, CtKey4, FragKey4);
family!(V6, Addr6, CtKey6, FragKey6);

impl NodeTable for World {
    fn is_node(&self, key: &TunnelKey) -> bool {
        let owner = IpTable::<V4>::owner(self, &key.remote.first4());
        owner.is_some_and(|entry| entry.flags.has(IpFlags::NODE))
    }
}

impl PolicyTable for World {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        // All prefixes here end behind the identity.
        let fixed = |key: &PolicyKey| (key.endpoint, key.direction, key.identity);
        self.policy.iter().find(|(known, _)| fixed(known) == fixed(key)).map(|(_, entry)| *entry)
    }
}

impl Node for World {
    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, direction: Direction, reason: u8, _: u32) {
        *self.counters.borrow_mut().entry(metrics_index(direction, reason)).or_default() += 1;
    }

    fn emit<F: Family>(&self, facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) -> bool {
        let mut event = Event::default();
        facts.write_event(&mut event, kind, code, verdict);
        self.events.borrow_mut().push(event);
        true
    }
}
