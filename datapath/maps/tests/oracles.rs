//! Every kind of map against the simplest thing that can be right: a sorted map, brute force, a queue.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::collections::{BTreeMap, VecDeque};

use datapath_maps::{Errno, MapKind, MapSpec, MemoryMap, UpdateMode, map_flags};
use proptest::prelude::*;

fn map(kind: MapKind, key_size: u32, value_size: u32, max_entries: u32, cpus: u32) -> MemoryMap {
    let flags = if kind == MapKind::LpmTrie { map_flags::NO_PREALLOC } else { 0 };
    let spec = MapSpec { name: "test".to_owned(), kind, key_size, value_size, max_entries, flags };
    MemoryMap::new(spec, cpus).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    Find(u8),
    Insert(u8, u8, UpdateMode),
    Remove(u8),
    EndRun,
    Clear,
}

fn mode() -> impl Strategy<Value = UpdateMode> {
    prop_oneof![
        6 => Just(UpdateMode::Any),
        1 => Just(UpdateMode::NoExist),
        1 => Just(UpdateMode::Exist),
    ]
}

fn ops(keys: u8) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        30 => (0..keys).prop_map(Op::Find),
        40 => (0..keys, any::<u8>(), mode()).prop_map(|(k, v, m)| Op::Insert(k, v, m)),
        15 => (0..keys).prop_map(Op::Remove),
        10 => Just(Op::EndRun),
        1 => Just(Op::Clear),
    ];
    prop::collection::vec(op, 1..300)
}

/// Keys that differ only in one byte, at every place of the key.
fn key(number: u8, size: usize) -> Vec<u8> {
    let mut key = vec![0; size];
    key[usize::from(number) % size] = number + 1;
    key
}

fn value_of(map: &MemoryMap, slot: u32) -> Vec<u8> {
    map.values()[map.value_range(slot, 0)].to_vec()
}

/// What a hash must do; `lru` makes room instead of refusing. Front of `order` = most recently used.
struct HashOracle {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    order: VecDeque<Vec<u8>>,
    max: usize,
    lru: bool,
}

impl HashOracle {
    fn touch(&mut self, key: &[u8]) {
        self.order.retain(|other| other != key);
        self.order.push_front(key.to_vec());
    }

    fn find(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.entries.get(key).cloned();
        if found.is_some() {
            self.touch(key);
        }
        found
    }

    fn insert(&mut self, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), Errno> {
        let there = self.entries.contains_key(key);
        if there && mode == UpdateMode::NoExist {
            return Err(Errno::Exist);
        }
        if !there && mode == UpdateMode::Exist {
            return Err(Errno::Noent);
        }
        if !there && self.entries.len() == self.max {
            if !self.lru {
                return Err(Errno::E2big);
            }
            let oldest = self.order.pop_back().unwrap();
            self.entries.remove(&oldest);
        }
        self.entries.insert(key.to_vec(), value.to_vec());
        self.touch(key);
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Errno> {
        self.order.retain(|other| other != key);
        self.entries.remove(key).map(|_| ()).ok_or(Errno::Noent)
    }
}

fn check_hash(kind: MapKind, key_size: usize, max: u32, ops: &[Op]) {
    let mut map = map(kind, u32::try_from(key_size).unwrap(), 5, max, 1);
    let mut oracle = HashOracle {
        entries: BTreeMap::new(),
        order: VecDeque::new(),
        max: max as usize,
        lru: kind == MapKind::LruHash,
    };
    // Slots seen live in this run: where they are, what they held.
    let mut left_in_run: Vec<(u32, Vec<u8>)> = Vec::new();
    for op in ops {
        match op {
            Op::Find(k) => {
                let key = key(*k, key_size);
                let found = map.find(&key).map(|slot| value_of(&map, slot));
                assert_eq!(found, oracle.find(&key));
            }
            Op::Insert(k, v, mode) => {
                let key = key(*k, key_size);
                let value = [*v; 5];
                let before = map.get_bytes(&key);
                let old = before.map(|bytes| {
                    // `entries` order is by key, so the slot is found by value position: look through `find` only
                    // when the kind does not notice.
                    (
                        (0..map.slots()).find(|slot| {
                            map.is_live(*slot)
                                && value_of(&map, *slot) == bytes
                                && kind == MapKind::Hash
                                && map.clone().find(&key) == Some(*slot)
                        }),
                        bytes,
                    )
                });
                let got = map.insert(&key, &value, *mode, 0);
                assert_eq!(got.map(|_| ()), oracle.insert(&key, &value, *mode));
                if let Ok(slot) = got {
                    assert_eq!(value_of(&map, slot), value);
                    assert!(map.is_live(slot));
                    if left_in_run.len() < 60 {
                        assert!(left_in_run.iter().all(|(left, _)| *left != slot));
                    }
                    if let Some((Some(old), bytes)) = old {
                        assert_ne!(old, slot, "an update moves the entry");
                        left_in_run.push((old, bytes));
                    }
                }
            }
            Op::Remove(k) => {
                let key = key(*k, key_size);
                assert_eq!(map.remove(&key), oracle.remove(&key));
            }
            Op::EndRun => {
                map.end_run();
                left_in_run.clear();
            }
            Op::Clear => {
                map.clear();
                oracle.entries.clear();
                oracle.order.clear();
                left_in_run.clear();
            }
        }
        if left_in_run.len() < 60 {
            for (slot, bytes) in &left_in_run {
                assert!(!map.is_live(*slot));
                assert_eq!(&value_of(&map, *slot), bytes, "stale bytes stay until the run ends");
            }
        }
        let entries: Vec<_> = oracle.entries.clone().into_iter().collect();
        assert_eq!(map.entries(), entries);
        assert_eq!(map.stats().entries, entries.len() as u64);
    }
}

/// What longest-prefix match means, said as slowly as possible.
#[derive(Default)]
struct LpmOracle {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

fn prefix(key: &[u8]) -> (u32, Vec<bool>) {
    let bits = u32::from_ne_bytes(key[..4].try_into().unwrap());
    let data = key[4..].iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    (bits, data)
}

fn covers(entry: &[u8], query: &[u8]) -> bool {
    let ((a_bits, a), (b_bits, b)) = (prefix(entry), prefix(query));
    a_bits <= b_bits && a[..a_bits as usize] == b[..a_bits as usize]
}

fn same(a: &[u8], b: &[u8]) -> bool {
    covers(a, b) && covers(b, a)
}

impl LpmOracle {
    fn find(&self, query: &[u8]) -> Option<Vec<u8>> {
        if prefix(query).0 as usize > (query.len() - 4) * 8 {
            return None;
        }
        self.entries
            .iter()
            .filter(|(key, _)| covers(key, query))
            .max_by_key(|(key, _)| prefix(key).0)
            .map(|(_, value)| value.clone())
    }

    fn insert(&mut self, key: &[u8], value: &[u8], mode: UpdateMode, max: usize) -> Result<(), Errno> {
        if prefix(key).0 as usize > (key.len() - 4) * 8 {
            return Err(Errno::Inval);
        }
        let there = self.entries.iter().position(|(other, _)| same(other, key));
        match (there, mode) {
            (Some(_), UpdateMode::NoExist) => return Err(Errno::Exist),
            (None, UpdateMode::Exist) => return Err(Errno::Noent),
            (Some(at), UpdateMode::Any | UpdateMode::Exist) => {
                self.entries.remove(at);
            }
            (None, UpdateMode::Any | UpdateMode::NoExist) if self.entries.len() == max => {
                return Err(Errno::Nospc);
            }
            (None, UpdateMode::Any | UpdateMode::NoExist) => {}
        }
        self.entries.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Errno> {
        if prefix(key).0 as usize > (key.len() - 4) * 8 {
            return Err(Errno::Inval);
        }
        let at = self.entries.iter().position(|(other, _)| same(other, key));
        self.entries.remove(at.ok_or(Errno::Noent)?);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum LpmOp {
    Find(Vec<u8>),
    Insert(Vec<u8>, u8, UpdateMode),
    Remove(Vec<u8>),
    EndRun,
}

/// Data bytes are few different ones, so that prefixes meet.
fn lpm_key(data: usize) -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(prop::sample::select(vec![0u8, 1, 0x80, 0xff]), data);
    let bits = 0..=u32::try_from(data * 8 + 1).unwrap();
    (bits, bytes).prop_map(|(bits, bytes)| {
        let mut key = bits.to_ne_bytes().to_vec();
        key.extend(bytes);
        key
    })
}

fn lpm_ops(data: usize) -> impl Strategy<Value = Vec<LpmOp>> {
    let op = prop_oneof![
        20 => lpm_key(data).prop_map(LpmOp::Find),
        20 => (lpm_key(data), any::<u8>(), mode()).prop_map(|(k, v, m)| LpmOp::Insert(k, v, m)),
        6 => lpm_key(data).prop_map(LpmOp::Remove),
        3 => Just(LpmOp::EndRun),
    ];
    prop::collection::vec(op, 1..200)
}

fn check_lpm(data: usize, ops: &[LpmOp]) {
    let max = 24;
    let size = u32::try_from(data + 4).unwrap();
    let mut map = map(MapKind::LpmTrie, size, 3, max, 1);
    let mut oracle = LpmOracle::default();
    for op in ops {
        match op {
            LpmOp::Find(key) => {
                let found = map.find(key).map(|slot| value_of(&map, slot));
                assert_eq!(found, oracle.find(key), "{key:?} in {:?}", oracle.entries);
            }
            LpmOp::Insert(key, v, mode) => assert_eq!(
                map.insert(key, &[*v; 3], *mode, 0).map(|_| ()),
                oracle.insert(key, &[*v; 3], *mode, max as usize)
            ),
            LpmOp::Remove(key) => assert_eq!(map.remove(key), oracle.remove(key)),
            LpmOp::EndRun => map.end_run(),
        }
        let mut entries = oracle.entries.clone();
        entries.sort();
        assert_eq!(map.entries(), entries);
    }
}

#[derive(Clone, Debug)]
enum RingOp {
    Reserve(u32),
    Submit(usize),
    Discard(usize),
    Drain,
}

fn ring_ops() -> impl Strategy<Value = Vec<RingOp>> {
    let op = prop_oneof![
        10 => prop_oneof![0..64u32, 500..3000u32, 4000..4200u32, Just(u32::MAX)].prop_map(RingOp::Reserve),
        6 => (0..4usize).prop_map(RingOp::Submit),
        2 => (0..4usize).prop_map(RingOp::Discard),
        3 => Just(RingOp::Drain),
    ];
    prop::collection::vec(op, 1..200)
}

/// (data, bytes taken, done, delivered)
type RingModel = VecDeque<(Vec<u8>, u32, bool, bool)>;

fn check_ring(ops: &[RingOp]) {
    let size = 4096;
    let mut map = map(MapKind::RingBuf, 0, 0, size, 1);
    let mut model: RingModel = VecDeque::new();
    let mut open: Vec<(usize, u64)> = Vec::new(); // offset, serial
    let mut serials: VecDeque<u64> = VecDeque::new();
    let (mut lost, mut serial) = (0, 0u64);
    for op in ops {
        match op {
            RingOp::Reserve(len) => {
                let used: u32 = model.iter().map(|record| record.1).sum();
                let fits = *len < size && used + len.div_ceil(8) * 8 + 8 < size;
                let got = map.ring_reserve(*len);
                assert_eq!(got.is_some(), fits, "{len} with {used} used");
                let Some(slot) = got else {
                    lost += 1;
                    continue;
                };
                assert_eq!(slot.len, *len as usize);
                assert_eq!(map.ring_reserved_at(slot.offset), Some(slot));
                serial += 1;
                let data: Vec<u8> = (0..slot.len).map(|i| serial.wrapping_add(i as u64).to_le_bytes()[0]).collect();
                map.values_mut()[slot.offset..slot.offset + slot.len].copy_from_slice(&data);
                model.push_back((data, len.div_ceil(8) * 8 + 8, false, false));
                serials.push_back(serial);
                open.push((slot.offset, serial));
            }
            RingOp::Submit(i) | RingOp::Discard(i) => {
                if open.is_empty() {
                    continue;
                }
                let (offset, which) = open.remove(i % open.len());
                let at = serials.iter().position(|s| *s == which).unwrap();
                let deliver = matches!(op, RingOp::Submit(_));
                (model[at].2, model[at].3) = (true, deliver);
                if deliver {
                    map.ring_submit(offset);
                } else {
                    map.ring_discard(offset);
                }
            }
            RingOp::Drain => {
                let mut expected = Vec::new();
                while model.front().is_some_and(|record| record.2) {
                    let record = model.pop_front().unwrap();
                    serials.pop_front();
                    if record.3 {
                        expected.push(record.0);
                    }
                }
                assert_eq!(map.ring_drain(), expected);
            }
        }
        assert_eq!(map.ring_lost(), lost);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hash_is_a_bounded_sorted_map(ops in ops(40), size in prop::sample::select(vec![1usize, 4, 7, 8, 16, 20, 40])) {
        check_hash(MapKind::Hash, size, 12, &ops);
    }

    #[test]
    fn lru_hash_pushes_out_what_was_used_longest_ago(ops in ops(40), size in prop::sample::select(vec![4usize, 16, 40])) {
        check_hash(MapKind::LruHash, size, 12, &ops);
    }

    #[test]
    fn trie_finds_the_longest_prefix(
        (data, ops) in (1usize..=20).prop_flat_map(|data| (Just(data), lpm_ops(data)))
    ) {
        check_lpm(data, &ops);
    }

    #[test]
    fn four_byte_trie_finds_the_longest_prefix(ops in lpm_ops(4)) {
        check_lpm(4, &ops);
    }

    #[test]
    fn ring_delivers_in_order_what_fits(ops in ring_ops()) {
        check_ring(&ops);
    }
}

#[test]
fn array_has_every_entry_and_refuses_deletion() {
    let mut array = map(MapKind::Array, 4, 6, 3, 1);
    let key = |index: u32| index.to_ne_bytes();
    assert_eq!(array.find(&key(2)), Some(2));
    assert_eq!(array.find(&key(3)), None);
    assert_eq!(array.insert(&key(1), &[7; 6], UpdateMode::Exist, 0), Ok(1));
    assert_eq!(array.insert(&key(1), &[7; 6], UpdateMode::NoExist, 0), Err(Errno::Exist));
    assert_eq!(array.insert(&key(3), &[7; 6], UpdateMode::Any, 0), Err(Errno::E2big));
    assert_eq!(array.insert(&key(1), &[7; 5], UpdateMode::Any, 0), Err(Errno::Inval));
    assert_eq!(array.remove(&key(1)), Err(Errno::Inval));
    assert_eq!(array.value_stride(), 8);
    assert_eq!(array.entries()[1], (key(1).to_vec(), vec![7; 6]));
    array.clear();
    assert_eq!(array.entries().len(), 3);
    assert_eq!(array.get_bytes(&key(1)), Some(vec![0; 6]));
}

#[test]
fn per_cpu_array_keeps_cpus_apart() {
    let mut array = map(MapKind::PerCpuArray, 4, 4, 2, 3);
    let key = 1u32.to_ne_bytes();
    array.insert(&key, &[5; 4], UpdateMode::Any, 2).unwrap();
    let mut expected = vec![0; 24];
    expected[16..20].fill(5);
    assert_eq!(array.get_bytes(&key), Some(expected.clone()));
    assert_eq!(array.owner_of(array.value_offset(1, 2)), Some((1, 2)));
    assert_eq!(array.insert(&key, &[5; 4], UpdateMode::Any, 3), Err(Errno::Inval));
    expected[0] = 9;
    array.set_bytes(&key, &expected, UpdateMode::Any).unwrap();
    assert_eq!(array.values()[array.value_range(1, 0)], [9, 0, 0, 0]);
    assert_eq!(array.set_bytes(&key, &expected[..23], UpdateMode::Any), Err(Errno::Inval));
}

#[test]
fn per_cpu_hash_is_zero_on_other_cpus_when_new_and_written_in_place_after() {
    let mut hash = map(MapKind::PerCpuHash, 4, 8, 2, 2);
    let slot = hash.insert(&[1; 4], &[3; 8], UpdateMode::Any, 0).unwrap();
    hash.insert(&[1; 4], &[4; 8], UpdateMode::Any, 1).unwrap();
    assert_eq!(hash.get_bytes(&[1; 4]), Some([[3; 8], [4; 8]].concat()));
    hash.remove(&[1; 4]).unwrap();
    hash.end_run();
    // The slot is used again; what was in it for the other CPU must not show.
    let again = hash.insert(&[2; 4], &[5; 8], UpdateMode::Any, 1).unwrap();
    assert_eq!(slot, again);
    assert_eq!(hash.get_bytes(&[2; 4]), Some([[0; 8], [5; 8]].concat()));
}

#[test]
fn program_array_finds_only_filled_slots_and_is_written_from_user_space() {
    let mut programs = map(MapKind::ProgArray, 4, 4, 4, 1);
    let key = |index: u32| index.to_ne_bytes();
    assert_eq!(programs.find(&key(1)), None);
    programs.set_bytes(&key(1), &7u32.to_ne_bytes(), UpdateMode::Any).unwrap();
    assert_eq!(programs.find(&key(1)), Some(1));
    assert_eq!(programs.insert(&key(1), &[0; 4], UpdateMode::Any, 0), Err(Errno::Opnotsupp));
    assert_eq!(programs.set_bytes(&key(4), &[0; 4], UpdateMode::Any), Err(Errno::E2big));
    assert_eq!(programs.set_bytes(&key(2), &[0; 4], UpdateMode::Exist), Err(Errno::Inval));
    assert_eq!(programs.remove(&key(1)), Ok(()));
    assert_eq!(programs.remove(&key(1)), Err(Errno::Noent));
    assert_eq!(programs.remove(&key(9)), Err(Errno::E2big));
}

#[test]
fn user_space_look_ups_do_not_count_as_use() {
    let mut lru = map(MapKind::LruHash, 1, 1, 2, 1);
    lru.insert(&[1], &[1], UpdateMode::Any, 0).unwrap();
    lru.insert(&[2], &[2], UpdateMode::Any, 0).unwrap();
    assert!(lru.get_bytes(&[1]).is_some());
    lru.insert(&[3], &[3], UpdateMode::Any, 0).unwrap();
    assert_eq!(lru.get_bytes(&[1]), None);
    assert_eq!(lru.stats().evicted, 1);
}

#[test]
fn more_updates_than_spare_slots_in_one_run_still_work() {
    let mut hash = map(MapKind::Hash, 1, 8, 2, 1);
    for round in 0..1000u64 {
        hash.insert(&[0], &round.to_ne_bytes(), UpdateMode::Any, 0).unwrap();
        hash.insert(&[1], &round.to_ne_bytes(), UpdateMode::Any, 0).unwrap();
    }
    assert_eq!(hash.get_bytes(&[1]), Some(999u64.to_ne_bytes().to_vec()));
    assert_eq!(hash.stats().entries, 2);
}

#[test]
fn a_thousand_deletions_leave_every_other_key_findable() {
    let mut hash = map(MapKind::Hash, 4, 4, 4096, 1);
    for i in 0..4096u32 {
        hash.insert(&i.to_ne_bytes(), &i.to_ne_bytes(), UpdateMode::Any, 0).unwrap();
    }
    assert_eq!(hash.insert(&[0xff; 4], &[0; 4], UpdateMode::Any, 0), Err(Errno::E2big));
    for i in (0..4096u32).step_by(3) {
        hash.remove(&i.to_ne_bytes()).unwrap();
    }
    for i in 0..4096u32 {
        assert_eq!(hash.find(&i.to_ne_bytes()).is_some(), i % 3 != 0, "{i}");
    }
}

#[test]
fn a_map_the_kernel_would_refuse_is_refused() {
    let spec = |kind, key_size, value_size, max_entries, flags| MapSpec {
        name: "bad".to_owned(),
        kind,
        key_size,
        value_size,
        max_entries,
        flags,
    };
    for bad in [
        spec(MapKind::Hash, 4, 4, 0, 0),
        spec(MapKind::Hash, 0, 4, 1, 0),
        spec(MapKind::LpmTrie, 8, 4, 1, 0),
        spec(MapKind::LpmTrie, 4, 4, 1, 1),
        spec(MapKind::Array, 8, 4, 1, 0),
        spec(MapKind::RingBuf, 0, 0, 5000, 0),
        spec(MapKind::RingBuf, 0, 0, 2048, 0),
        spec(MapKind::LruHash, 4, 4, 1, 1),
    ] {
        assert!(MemoryMap::new(bad.clone(), 1).is_err(), "{bad:?}");
    }
}
