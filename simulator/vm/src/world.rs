//! What a run stands on in either engine: packet, context, maps, environment; and the seam to the engine's addresses.

use datapath_maps::{MapKind, MemoryMaps};

use crate::api::{Env, FaultKind, Run, RunError, Skb, TunnelKey};
use crate::isa;
use crate::space::{MAX_FRAME, Packet, SkBuff, Space};

/// Bytes of an Ethernet header: the shortest frame there is.
pub(crate) const MIN_FRAME: usize = 14;

/// Result of a helper: r0, or the fault that ends the run.
pub(crate) type Outcome = Result<u64, Box<FaultKind>>;

/// How an engine's programs see memory. Pointers handed out are valid until the next call of a helper.
pub(crate) trait Memory {
    /// `len` bytes the program may read.
    fn readable(&self, helper: &'static str, address: u64, len: usize) -> Result<*const u8, Box<FaultKind>>;
    /// `len` bytes the program may write.
    fn writable(&self, helper: &'static str, address: u64, len: usize) -> Result<*mut u8, Box<FaultKind>>;
    /// The map whose handle this is.
    fn map(&self, handle: u64) -> Option<usize>;
    /// The program's address of a map's value.
    fn value(&self, map: usize, slot: u32) -> u64;
    /// Whether this is the context.
    fn is_context(&self, address: u64) -> bool;
    /// The packet's bytes or bounds changed: earlier pointers are void.
    fn packet_moved(&mut self, space: &mut Space, packet: Packet);
    /// A ring-buffer record was reserved; its address, or `None` if there are too many.
    fn record(&mut self, start: *mut u8, len: usize) -> Option<u64>;
    /// The record was given back.
    fn record_closed(&mut self, address: u64);
}

/// What helpers need to know about a map without asking it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapInfo {
    pub kind: MapKind,
    pub key_size: usize,
    pub value_size: usize,
}

/// A reserved ring-buffer record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub address: u64,
    pub map: usize,
    pub offset: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub space: Space,
    pub packet: Packet,
    pub maps: MemoryMaps,
    pub infos: Box<[MapInfo]>,
    pub env: Env,
    pub random: u64,
    pub run: Run,
    /// What `skb_get_tunnel_key` finds.
    pub arrived: Option<TunnelKey>,
    /// `tunnel_flags` of it.
    pub tunnel_flags: u16,
    pub records: Vec<Record>,
    pub tail_calls: u32,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    poison_seed: u64,
    poison: Box<[u64; isa::FRAME / 8]>,
}

impl World {
    pub(crate) fn new(space: Space, maps: MemoryMaps) -> Self {
        let infos = (0..maps.len())
            .filter_map(|index| maps.get(index))
            .map(|map| MapInfo {
                kind: map.spec().kind,
                key_size: size(map.spec().key_size),
                value_size: size(map.spec().value_size),
            })
            .collect();
        let mut world = Self {
            space,
            packet: Packet { head: Packet::START, len: 0, linear: 0, network: MIN_FRAME },
            maps,
            infos,
            env: Env::default(),
            random: 0,
            run: Run::default(),
            arrived: None,
            tunnel_flags: 0,
            records: Vec::new(),
            tail_calls: 0,
            key: Vec::with_capacity(64),
            value: Vec::with_capacity(256),
            poison_seed: 0,
            poison: Box::new([0; isa::FRAME / 8]),
        };
        world.seed_poison(1);
        world
    }

    /// Takes a packet in. Nothing is allocated.
    pub(crate) fn begin(&mut self, skb: &Skb, env: &Env) -> Result<(), RunError> {
        let len = skb.data.len();
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(RunError::FrameSize { len, min: MIN_FRAME, max: MAX_FRAME });
        }
        let linear = match size(skb.linear_len) {
            0 => len,
            some => some.clamp(MIN_FRAME, len),
        };
        self.packet = Packet { head: Packet::START, len, linear, network: MIN_FRAME };
        let to = self.space.at(Packet::START);
        // SAFETY: len is at most MAX_FRAME, which fits behind START; the frame is not in the space.
        unsafe { std::ptr::copy_nonoverlapping(skb.data.as_ptr(), to, len) };
        let ethertype = match skb.data.get(12..14) {
            Some(&[high, low]) => u32::from_le_bytes([high, low, 0, 0]),
            _ => 0,
        };
        let whole = u32::try_from(len).unwrap_or(u32::MAX);
        *self.space.context() = SkBuff {
            len: whole,
            pkt_type: skb.pkt_type,
            mark: skb.mark,
            queue_mapping: skb.queue_mapping,
            protocol: ethertype,
            priority: skb.priority,
            ingress_ifindex: skb.ingress_ifindex,
            ifindex: skb.ifindex,
            tc_index: skb.tc_index,
            cb: skb.cb,
            hash: skb.hash,
            tc_classid: skb.tc_classid,
            tstamp: skb.tstamp,
            wire_len: whole,
            gso_segs: skb.gso_segs,
            gso_size: skb.gso_size,
            ..SkBuff::default()
        };
        self.env = *env;
        self.random = env.seed;
        self.run = Run::default();
        self.arrived = skb.tunnel_key;
        // A packet received with an identifier (`IP_TUNNEL_KEY_BIT`).
        self.tunnel_flags = 1 << 2;
        self.tail_calls = 0;
        self.records.clear();
        if env.seed != self.poison_seed {
            self.seed_poison(env.seed);
        }
        Ok(())
    }

    /// Gives the packet back, closes what is open. The number of records the program left open.
    pub(crate) fn end(&mut self, skb: &mut Skb) -> u32 {
        let start = self.space.at(self.packet.head);
        // SAFETY: head and len are kept within the packet's memory by every helper; nothing writes meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(start, self.packet.len) };
        skb.data.clear();
        skb.data.extend_from_slice(bytes);
        if skb.linear_len != 0 {
            skb.linear_len = u32::try_from(self.packet.linear).unwrap_or(u32::MAX);
        }
        let context = *self.space.context();
        skb.mark = context.mark;
        skb.cb = context.cb;
        skb.priority = context.priority;
        skb.queue_mapping = context.queue_mapping;
        skb.tc_index = context.tc_index;
        skb.tc_classid = context.tc_classid;
        skb.tstamp = context.tstamp;
        skb.hash = context.hash;
        skb.pkt_type = context.pkt_type;
        let open = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        for record in self.records.drain(..) {
            if let Some(map) = self.maps.get_mut(record.map) {
                map.ring_discard(record.offset);
            }
        }
        self.maps.end_run();
        open
    }

    /// Fills a frame with the pattern of unwritten memory.
    #[inline]
    pub(crate) fn poison(&self, frame: *mut u8) {
        // SAFETY: callers pass the start of a frame, FRAME bytes inside the space.
        unsafe { std::ptr::copy_nonoverlapping(self.poison.as_ptr().cast::<u8>(), frame, isa::FRAME) };
    }

    fn seed_poison(&mut self, seed: u64) {
        self.poison_seed = seed;
        let mut state = seed ^ 0x706f_6973_6f6e;
        for word in self.poison.iter_mut() {
            *word = split_mix(&mut state);
        }
    }

    /// The next answer of `get_prandom_u32`.
    pub(crate) fn next_random(&mut self) -> u32 {
        let [_, _, _, _, a, b, c, d] = split_mix(&mut self.random).to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The program a tail call goes to; `None`: it falls through.
    pub(crate) fn tail_target(&mut self, map: Option<usize>, index: u64) -> Result<Option<u32>, Box<FaultKind>> {
        let array = map.filter(|&map| self.infos.get(map).is_some_and(|info| info.kind == MapKind::ProgArray));
        let Some(map) = array.and_then(|map| self.maps.get_mut(map)) else {
            return Err(Box::new(FaultKind::Helper { helper: "tail_call", reason: "r2 is no program array" }));
        };
        if self.env.faults.tail_call || self.tail_calls >= isa::MAX_TAIL_CALLS {
            return Ok(None);
        }
        // The index is a u32 argument.
        let [a, b, c, d, ..] = index.to_le_bytes();
        let Some(slot) = map.find(&[a, b, c, d]) else { return Ok(None) };
        let Some(&[a, b, c, d]) = map.values().get(map.value_range(slot, 0)) else { return Ok(None) };
        self.tail_calls += 1;
        Ok(Some(u32::from_le_bytes([a, b, c, d])))
    }
}

/// Sizes of the kernel's interface are u32.
pub(crate) fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Host addresses are 64 bits wide wherever this runs, or the upper bits are zero.
#[inline]
pub(crate) fn address(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
