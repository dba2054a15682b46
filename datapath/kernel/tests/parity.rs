//! The same random operations on maps in memory and in the kernel give the same answers: from user space, and from a
//! program. Needs root; otherwise prints the skip line, whose claim `missing_privilege` has checked.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code: helpers outside #[test] functions")]

use std::os::fd::{AsFd, AsRawFd};

use datapath_kernel::insn::{self, Insn, Size};
use datapath_kernel::{KernelError, KernelMap, KernelMaps, Loaded, SkbContext, pin_to_cpu, possible_cpus, skip_line};
use datapath_maps::{MapKind, MapSpec, MemoryMap, UpdateMode, map_flags};

const ROUNDS: u64 = 8;
const STEPS: u32 = 1500;

/// Random numbers from a seed (PCG-XSH-RR, O'Neill 2014).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u32 {
        let old = self.0;
        self.0 = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = (((old >> 18) ^ old) >> 27).to_le_bytes();
        let mixed = u32::from_le_bytes(*bytes.first_chunk().unwrap());
        mixed.rotate_right(u32::try_from(old >> 59).unwrap())
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.next() % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn mode(&mut self) -> UpdateMode {
        match self.below(8) {
            0 => UpdateMode::NoExist,
            1 => UpdateMode::Exist,
            _ => UpdateMode::Any,
        }
    }
}

fn skipped() -> bool {
    let line = skip_line();
    if let Some(line) = &line {
        println!("{line}");
    }
    line.is_some()
}

fn spec(kind: MapKind, key_size: u32, value_size: u32, max_entries: u32) -> MapSpec {
    MapSpec {
        name: format!("par_{}", kind.name()),
        kind,
        key_size,
        value_size,
        max_entries,
        flags: if kind == MapKind::LpmTrie { map_flags::NO_PREALLOC } else { 0 },
    }
}

/// A key out of few, so that operations meet; a trie's prefix may be one bit too long, an array's index beyond the end.
fn key(random: &mut Random, spec: &MapSpec) -> Vec<u8> {
    let size = spec.key_size as usize;
    match spec.kind {
        MapKind::LpmTrie => {
            let bits = random.below((spec.key_size - 4) * 8 + 2);
            let mut key = bits.to_ne_bytes().to_vec();
            key.extend((4..size).map(|_| [0u8, 1, 0x80, 0xff][random.below(4) as usize]));
            key
        }
        MapKind::Array | MapKind::PerCpuArray => random.below(spec.max_entries + 2).to_ne_bytes().to_vec(),
        MapKind::Hash | MapKind::LruHash | MapKind::PerCpuHash | MapKind::ProgArray | MapKind::RingBuf => {
            let number = random.below(40);
            let mut key = vec![0; size];
            key[number as usize % size] = u8::try_from(number).unwrap() + 1;
            key
        }
    }
}

/// The error number, or 0.
fn number<T>(result: Result<T, KernelError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error}")),
    }
}

fn user_space(spec: &MapSpec, seed: u64) {
    let mut random = Random::new(seed);
    let kernel = KernelMap::create(spec.clone()).unwrap();
    let cpus = possible_cpus().unwrap();
    let mut memory = MemoryMap::new(spec.clone(), cpus).unwrap();
    for step in 0..STEPS {
        let place = format!("{} seed {seed} step {step}", spec.name);
        let key = key(&mut random, spec);
        match random.below(10) {
            0..=4 => {
                // Padding behind a per-CPU value is not looked at: zero in both.
                let stride = (spec.value_size as usize).next_multiple_of(8);
                let mut value = random.bytes(spec.user_value_size(cpus));
                if spec.kind.is_per_cpu() {
                    for one in value.chunks_exact_mut(stride) {
                        one[spec.value_size as usize..].fill(0);
                    }
                }
                let mode = random.mode();
                let expected = number(kernel.set(&key, &value, mode));
                let got = memory.set_bytes(&key, &value, mode);
                assert_eq!(
                    got.map_or_else(|errno| errno.number(), |()| 0),
                    expected,
                    "{place}: update {key:?} {mode:?}"
                );
            }
            5..=6 => {
                let expected = number(kernel.remove(&key));
                let got = memory.remove(&key);
                assert_eq!(got.map_or_else(|errno| errno.number(), |()| 0), expected, "{place}: delete {key:?}");
            }
            7..=8 => assert_eq!(memory.get_bytes(&key), kernel.get(&key).unwrap(), "{place}: look up {key:?}"),
            _ => memory.end_run(),
        }
        if step % 50 == 0 || step + 1 == STEPS {
            assert_eq!(memory.entries(), kernel.entries().unwrap(), "{place}: entries");
        }
    }
}

fn rounds(kind: MapKind, shapes: &[(u32, u32, u32)]) {
    if skipped() {
        return;
    }
    for (key_size, value_size, max_entries) in shapes {
        for seed in 1..=ROUNDS {
            user_space(&spec(kind, *key_size, *value_size, *max_entries), seed);
        }
    }
}

#[test]
fn hash_from_user_space() {
    rounds(MapKind::Hash, &[(4, 8, 16), (16, 40, 16), (7, 3, 64)]);
}

#[test]
fn lru_hash_below_capacity_from_user_space() {
    // The kernel's LRU evicts early when CPUs hoard free elements: leave it much room.
    rounds(MapKind::LruHash, &[(4, 8, 4096), (40, 56, 4096)]);
}

#[test]
fn trie_from_user_space() {
    rounds(MapKind::LpmTrie, &[(8, 4, 24), (20, 12, 24), (16, 8, 40), (5, 1, 12), (44, 8, 24)]);
}

#[test]
fn array_from_user_space() {
    rounds(MapKind::Array, &[(4, 8, 5), (4, 3, 9)]);
}

#[test]
fn per_cpu_array_from_user_space() {
    rounds(MapKind::PerCpuArray, &[(4, 16, 5), (4, 4, 3)]);
}

#[test]
fn per_cpu_hash_from_user_space() {
    rounds(MapKind::PerCpuHash, &[(8, 16, 16), (5, 4, 16)]);
}

#[test]
fn many_entries_are_written_and_read_in_batches() {
    if skipped() {
        return;
    }
    for kind in [MapKind::Hash, MapKind::LruHash, MapKind::LpmTrie] {
        let spec = spec(kind, 8, 8, 30_000);
        let mut kernel = KernelMaps::create([spec.clone()], None).unwrap();
        let mut memory = MemoryMap::new(spec.clone(), 1).unwrap();
        // An LRU is left half empty.
        let count = if kind == MapKind::LruHash { 12_000u32 } else { 30_000 };
        let entries: Vec<_> = (0..count)
            .map(|i| {
                let mut key = 32u32.to_ne_bytes().to_vec();
                key.extend(i.to_be_bytes());
                (key, u64::from(i).to_ne_bytes().to_vec())
            })
            .collect();
        for (key, value) in &entries {
            memory.set_bytes(key, value, UpdateMode::Any).unwrap();
        }
        kernel.get(&spec.name).unwrap().set_many(&entries).unwrap();
        assert_eq!(kernel.get(&spec.name).unwrap().entries().unwrap(), memory.entries(), "{kind:?}");
        kernel = KernelMaps::create([spec.clone()], Some(100)).unwrap();
        let capped = kernel.get(&spec.name).unwrap();
        assert_eq!(capped.spec().max_entries, 100);
        if kind == MapKind::Hash {
            assert_eq!(number(capped.set_many(&entries)), 7, "E2BIG");
            assert_eq!(capped.entries().unwrap().len(), 100);
        }
    }
}

/// Where the frame's operation lies on the stack.
const KEY: i16 = -48;
const VALUE: i16 = -24;
/// Bytes of operation and flags in front of the key.
const HEAD: i16 = 8;
/// r0 of a look-up that finds nothing.
const NOT_FOUND: u32 = 0xffff_fffe;

/// A program that does to a map what the frame says (behind the Ethernet header: operation, flags, 24 bytes of key,
/// 8 bytes of value) and returns the helper's answer, or the low half of the value found.
fn interpreter_of_frames(map: i32) -> Vec<Insn> {
    let base = KEY - HEAD;
    let mut code = vec![Insn::mov_reg(6, 1)];
    // skb_load_bytes(skb, 14, stack, 40)
    code.extend([
        Insn::mov(2, 14),
        Insn::mov_reg(3, 10),
        Insn::alu(insn::ADD_IMM, 3, base.into()),
        Insn::mov(4, 40),
        Insn::call(26),
        Insn::jump_imm(insn::JEQ_IMM, 0, 0, 2),
        Insn::mov(0, 0x7777),
        Insn::exit(),
        Insn::load(Size::Word, 7, 10, base),
        Insn::load(Size::Word, 4, 10, base + 4),
    ]);
    code.extend(Insn::load_map(1, map));
    code.extend([Insn::mov_reg(2, 10), Insn::alu(insn::ADD_IMM, 2, KEY.into())]);
    // Operation 0: look up.
    code.extend([
        Insn::jump_imm(insn::JNE_IMM, 7, 0, 6),
        Insn::call(1),
        Insn::jump_imm(insn::JNE_IMM, 0, 0, 2),
        Insn::mov(0, -2),
        Insn::exit(),
        Insn::load(Size::Word, 0, 0, 0),
        Insn::exit(),
    ]);
    // Operation 1: update.
    code.extend([
        Insn::jump_imm(insn::JNE_IMM, 7, 1, 4),
        Insn::mov_reg(3, 10),
        Insn::alu(insn::ADD_IMM, 3, VALUE.into()),
        Insn::call(2),
        Insn::exit(),
    ]);
    // Anything else: delete.
    code.extend([Insn::call(3), Insn::exit()]);
    code
}

fn frame(operation: u32, flags: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x88, 0xb5]); // local experimental Ethertype
    frame.extend(operation.to_ne_bytes());
    frame.extend(u32::try_from(flags).unwrap().to_ne_bytes());
    let mut padded = key.to_vec();
    padded.resize(24, 0);
    frame.extend(padded);
    frame.extend(value);
    frame.resize(64, 0);
    frame
}

fn from_programs(spec: &MapSpec, seed: u64, cpu: u32) {
    let mut random = Random::new(seed);
    let maps = KernelMaps::create([spec.clone()], None).unwrap();
    let map = maps.get(&spec.name).unwrap();
    let code = interpreter_of_frames(map.as_fd().as_raw_fd());
    let loaded = Loaded::assemble(maps, &[("interpreter", &code)], c"Dual MIT/GPL", false).unwrap();
    let map = loaded.maps().get(&spec.name).unwrap();
    let program = loaded.program("interpreter").unwrap();
    let mut memory = MemoryMap::new(spec.clone(), possible_cpus().unwrap()).unwrap();
    for step in 0..STEPS {
        let place = format!("{} from a program, seed {seed} step {step}", spec.name);
        let key = key(&mut random, spec);
        let value = random.bytes(8);
        let mode = random.mode();
        let operation = [0, 1, 1, 2][random.below(4) as usize];
        let mut frame = frame(operation, mode.bpf(), &key, &value);
        let got = program.test_run(&mut frame, &mut SkbContext::default()).unwrap();
        let answer = |result: Result<(), datapath_maps::Errno>| {
            let number = result.map_or_else(|errno| -errno.number(), |()| 0);
            u32::from_ne_bytes(number.to_ne_bytes())
        };
        let expected = match operation {
            0 => memory.find(&key).map_or(NOT_FOUND, |slot| {
                let at = memory.value_offset(slot, cpu);
                u32::from_ne_bytes(*memory.values()[at..].first_chunk().unwrap())
            }),
            1 => answer(memory.insert(&key, &value, mode, cpu).map(|_| ())),
            _ => answer(memory.remove(&key)),
        };
        memory.end_run();
        assert_eq!(got, expected, "{place}: operation {operation} {mode:?} {key:?}");
        if step % 50 == 0 || step + 1 == STEPS {
            assert_eq!(memory.entries(), map.entries().unwrap(), "{place}: entries");
        }
    }
}

#[test]
fn every_kind_from_programs() {
    if skipped() {
        return;
    }
    for cpu in 0..possible_cpus().unwrap().min(2) {
        let _pinned = pin_to_cpu(cpu).unwrap();
        for (kind, key_size, max_entries) in [
            (MapKind::Hash, 4, 16),
            (MapKind::Hash, 16, 16),
            (MapKind::LruHash, 16, 4096),
            (MapKind::LpmTrie, 8, 24),
            (MapKind::LpmTrie, 20, 24),
            (MapKind::Array, 4, 6),
            (MapKind::PerCpuArray, 4, 6),
            (MapKind::PerCpuHash, 8, 16),
        ] {
            for seed in 1..=3 {
                from_programs(&spec(kind, key_size, 8, max_entries), seed, cpu);
            }
        }
    }
}

#[test]
fn what_memory_refuses_to_create_the_kernel_refuses_too() {
    if skipped() {
        return;
    }
    // Straight to the kernel: `KernelMap::create` would refuse first.
    for bad in [
        MapSpec { flags: 0, ..spec(MapKind::LpmTrie, 8, 8, 4) },
        spec(MapKind::LpmTrie, 4, 8, 4),
        spec(MapKind::Array, 8, 8, 4),
        spec(MapKind::Hash, 0, 8, 4),
        spec(MapKind::RingBuf, 0, 0, 5000),
    ] {
        assert!(MemoryMap::new(bad.clone(), 1).is_err(), "{bad:?}");
        assert!(KernelMap::create_unchecked(bad.clone()).is_err(), "{bad:?}");
    }
}
