//! Test runs of hand-assembled programs: what goes in and comes out, the probe, ring buffers, tail calls, devices.
//! Needs root; otherwise prints the skip line, whose claim `missing_privilege` has checked.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::os::fd::{AsFd, AsRawFd};

use datapath_kernel::insn::{self, Insn, Size};
use datapath_kernel::{
    KernelMaps, Loaded, ProbeInput, Program, ProgramKind, ProgramSource, RedirectKind, SkbContext, TestNet,
    TunnelKeyIn, pin_to_cpu, skip_line,
};
use datapath_maps::{MapKind, MapSpec, UpdateMode};

const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";

/// Offsets in `struct __sk_buff`.
const MARK: i16 = 8;
const IFINDEX: i16 = 40;
const CB: i16 = 48;

fn skipped() -> bool {
    let line = skip_line();
    if let Some(line) = &line {
        println!("{line}");
    }
    line.is_some()
}

fn frame() -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x88, 0xb5]); // local experimental Ethertype
    frame.extend(0..50);
    frame
}

fn map_spec(name: &str, kind: MapKind, key_size: u32, value_size: u32, max_entries: u32) -> MapSpec {
    MapSpec { name: name.to_owned(), kind, key_size, value_size, max_entries, flags: 0 }
}

fn loaded(maps: KernelMaps, code: &[Insn], instrument: bool) -> Loaded {
    Loaded::assemble(maps, &[("program", code)], LICENSE, instrument).unwrap()
}

fn run(loaded: &Loaded) -> u32 {
    let (mut frame, mut ctx) = (frame(), SkbContext::default());
    loaded.program("program").unwrap().test_run(&mut frame, &mut ctx).unwrap()
}

#[test]
fn verdict_frame_and_context_come_back_changed() {
    if skipped() {
        return;
    }
    let code = [
        // mark += 1, cb[1] = 5
        Insn::mov_reg(6, 1),
        Insn::load(Size::Word, 2, 6, MARK),
        Insn::alu(insn::ADD_IMM, 2, 1),
        Insn::store(Size::Word, 6, MARK, 2),
        Insn::mov(2, 5),
        Insn::store(Size::Word, 6, CB + 4, 2),
        // skb_store_bytes(skb, 14, "\x2a", 1, 0)
        Insn::store_imm(Size::Byte, 10, -8, 0x2a),
        Insn::mov(2, 14),
        Insn::mov_reg(3, 10),
        Insn::alu(insn::ADD_IMM, 3, -8),
        Insn::mov(4, 1),
        Insn::mov(5, 0),
        Insn::call(9),
        // skb_change_tail(skb, 70, 0)
        Insn::mov_reg(1, 6),
        Insn::mov(2, 70),
        Insn::mov(3, 0),
        Insn::call(38),
        Insn::mov(0, 2),
        Insn::exit(),
    ];
    let loaded = loaded(KernelMaps::default(), &code, false);
    let mut packet = frame();
    let mut ctx = SkbContext { mark: 41, priority: 3, cb: [1, 2, 3, 4, 5], ..SkbContext::default() };
    let verdict = loaded.program("program").unwrap().test_run(&mut packet, &mut ctx).unwrap();
    assert_eq!(verdict, 2);
    let mut expected = frame();
    expected[14] = 0x2a;
    expected.resize(70, 0);
    assert_eq!(packet, expected);
    assert_eq!((ctx.mark, ctx.priority, ctx.cb), (42, 3, [1, 5, 3, 4, 5]));
    let stats = loaded.program("program").unwrap().stats();
    assert_eq!(stats.instructions, 19);
    assert!(stats.processed >= 19, "{stats:?}");
    assert_eq!(stats.stack_depth, [8]);
}

#[test]
fn a_refused_program_says_why() {
    if skipped() {
        return;
    }
    let code = [Insn::load(Size::Word, 0, 1, 4000), Insn::exit()];
    let error = Loaded::assemble(KernelMaps::default(), &[("bad", &code)], LICENSE, false).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`bad` refused: "), "{text}");
    assert!(text.contains("invalid bpf_context access off=4000"), "{text}");
    assert_eq!(error.errno(), Some(13), "EACCES");
}

#[test]
fn a_frame_shorter_than_ethernet_is_an_error_and_stays() {
    if skipped() {
        return;
    }
    let loaded = loaded(KernelMaps::default(), &[Insn::mov(0, 0), Insn::exit()], false);
    let mut short = vec![1; 13];
    let error = loaded.program("program").unwrap().test_run(&mut short, &mut SkbContext::default()).unwrap_err();
    assert_eq!(error.errno(), Some(22));
    assert_eq!(short, [1; 13]);
}

#[test]
fn devices_of_a_test_net_have_the_index_that_was_asked_for() {
    if skipped() {
        return;
    }
    let code = [Insn::load(Size::Word, 0, 1, IFINDEX), Insn::exit()];
    let loaded = loaded(KernelMaps::default(), &code, false);
    let program = loaded.program("program").unwrap();
    let seen = |ifindex| {
        let mut ctx = SkbContext { ifindex, ..SkbContext::default() };
        program.test_run(&mut frame(), &mut ctx).map_err(|error| error.errno())
    };
    let net = TestNet::with_devices(&[1, 7, 70_000]).unwrap();
    let links = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let before = links();
    {
        let _inside = net.enter().unwrap();
        assert_eq!(seen(1), Ok(1));
        assert_eq!(seen(7), Ok(7));
        assert_eq!(seen(70_000), Ok(70_000));
        assert_eq!(seen(8), Err(Some(19)), "ENODEV");
        net.add_device(8, [2, 0, 0, 0, 0, 8]).unwrap();
        assert_eq!(seen(8), Ok(8));
        assert!(net.add_device(8, [2, 0, 0, 0, 0, 9]).is_err());
        assert!(links().contains("dev70000:"));
    }
    assert_eq!(links(), before, "the thread is back where it was");
}

#[test]
fn time_of_a_run_is_measured() {
    if skipped() {
        return;
    }
    let _pinned = pin_to_cpu(0).unwrap();
    let loaded = loaded(KernelMaps::default(), &[Insn::mov(0, 0), Insn::exit()], false);
    let nanoseconds = loaded.program("program").unwrap().bench(&frame(), &SkbContext::default(), 10_000).unwrap();
    assert!((1..100_000).contains(&nanoseconds), "{nanoseconds}");
}

#[test]
fn buffer_programs_change_their_buffer() {
    if skipped() {
        return;
    }
    let code = [
        Insn::load(Size::Double, 2, 1, 0),
        Insn::alu(insn::LSH_IMM, 2, 4),
        Insn::store(Size::Double, 1, 8, 2),
        Insn::mov(0, 9),
        Insn::exit(),
    ];
    let program = Program::load(&ProgramSource {
        name: "buffer",
        kind: ProgramKind::Syscall,
        insns: &code,
        license: LICENSE,
        btf: None,
    })
    .unwrap();
    let mut buffer = [0; 16];
    buffer[0] = 3;
    assert_eq!(program.run_buffer(&mut buffer).unwrap(), 9);
    assert_eq!(buffer[8], 0x30);
}

#[test]
fn ring_records_arrive_in_order_and_discarded_ones_do_not() {
    if skipped() {
        return;
    }
    let maps = KernelMaps::create([map_spec("ring", MapKind::RingBuf, 0, 0, 4096)], None).unwrap();
    let fd = maps.get("ring").unwrap().as_fd().as_raw_fd();
    // ringbuf_output(mark as 8 bytes), then reserve and discard.
    let mut code = vec![Insn::load(Size::Word, 2, 1, MARK), Insn::store(Size::Double, 10, -8, 2)];
    code.extend(Insn::load_map(1, fd));
    code.extend([
        Insn::mov_reg(2, 10),
        Insn::alu(insn::ADD_IMM, 2, -8),
        Insn::mov(3, 8),
        Insn::mov(4, 0),
        Insn::call(130),
        Insn::mov_reg(6, 0),
    ]);
    code.extend(Insn::load_map(1, fd));
    code.extend([
        Insn::mov(2, 16),
        Insn::mov(3, 0),
        Insn::call(131),
        Insn::jump_imm(insn::JEQ_IMM, 0, 0, 3),
        Insn::mov_reg(1, 0),
        Insn::mov(2, 0),
        Insn::call(133),
        Insn::mov_reg(0, 6),
        Insn::exit(),
    ]);
    let loaded = loaded(maps, &code, false);
    let mut reader = loaded.ring("ring").unwrap();
    let program = loaded.program("program").unwrap();
    assert!(reader.drain().is_empty());
    // More rounds than fit the ring at once, so that it wraps.
    for round in 0..50u32 {
        let marks = [round * 3, round * 3 + 1, round * 3 + 2];
        for mark in marks {
            let mut ctx = SkbContext { mark, ..SkbContext::default() };
            assert_eq!(program.test_run(&mut frame(), &mut ctx).unwrap(), 0);
        }
        let expected: Vec<Vec<u8>> = marks.iter().map(|mark| u64::from(*mark).to_ne_bytes().to_vec()).collect();
        assert_eq!(reader.drain(), expected);
    }
    // A full ring refuses.
    let full = (0..300).filter(|_| run(&loaded) != 0).count();
    assert!(full > 0);
    assert_eq!(reader.drain().len(), 300 - full);
}

#[test]
fn clock_and_random_numbers_of_an_instrumented_copy_come_from_the_probe() {
    if skipped() {
        return;
    }
    let input = ProbeInput {
        clock_ns: 77,
        jiffies: 88,
        random: std::array::from_fn(|i| u32::try_from(i).unwrap() + 100),
        ..ProbeInput::default()
    };
    for (helper, expected) in [(5, 77), (125, 77), (160, 77), (118, 88), (7, 100)] {
        let loaded = loaded(KernelMaps::default(), &[Insn::call(helper), Insn::exit()], true);
        loaded.probe().unwrap().set(&input);
        assert_eq!(run(&loaded), expected, "helper {helper}");
        assert_eq!(loaded.probe().unwrap().output().calls, 1);
    }
    // Twice in a row: the second number, r6 to r9 and the stack survive.
    let code = [
        Insn::mov(6, 1000),
        Insn::store_imm(Size::Double, 10, -8, 5000),
        Insn::call(7),
        Insn::call(7),
        Insn::new(insn::ADD_REG, 0, 6, 0, 0),
        Insn::load(Size::Double, 1, 10, -8),
        Insn::new(insn::ADD_REG, 0, 1, 0, 0),
        Insn::exit(),
    ];
    let loaded = loaded(KernelMaps::default(), &code, true);
    for _ in 0..2 {
        loaded.probe().unwrap().set(&input);
        assert_eq!(run(&loaded), 6101);
    }
}

#[test]
fn redirects_are_recorded_and_still_happen() {
    if skipped() {
        return;
    }
    let two = |helper| vec![Insn::mov(1, 9), Insn::mov(2, 0), Insn::call(helper), Insn::exit()];
    let neigh = vec![
        // struct bpf_redir_neigh { nh_family = AF_INET, address }
        Insn::store_imm(Size::Word, 10, -20, 2),
        Insn::store_imm(Size::Word, 10, -16, 0x0100_000a),
        Insn::store_imm(Size::Word, 10, -12, 0),
        Insn::store_imm(Size::Word, 10, -8, 0),
        Insn::store_imm(Size::Word, 10, -4, 0),
        Insn::mov(1, 9),
        Insn::mov_reg(2, 10),
        Insn::alu(insn::ADD_IMM, 2, -20),
        Insn::mov(3, 20),
        Insn::mov(4, 0),
        Insn::call(152),
        Insn::exit(),
    ];
    let neigh_none =
        vec![Insn::mov(1, 9), Insn::mov(2, 0), Insn::mov(3, 0), Insn::mov(4, 0), Insn::call(152), Insn::exit()];
    for (code, kind, parameters) in [
        (two(23), RedirectKind::Device, None),
        (two(155), RedirectKind::Peer, None),
        (neigh, RedirectKind::Neigh, Some([2, 10])),
        (neigh_none, RedirectKind::Neigh, None),
    ] {
        let plain = loaded(KernelMaps::default(), &code, false);
        let copy = loaded(KernelMaps::default(), &code, true);
        copy.probe().unwrap().set(&ProbeInput::default());
        assert_eq!(copy.probe().unwrap().output().redirect, None);
        assert_eq!(run(&copy), run(&plain), "{kind:?}");
        assert_eq!(run(&copy), 7, "TC_ACT_REDIRECT");
        let output = copy.probe().unwrap().output();
        let call = output.redirect.unwrap();
        assert_eq!((call.kind, call.ifindex, call.flags), (kind, 9, 0));
        assert_eq!(call.neigh.map(|neigh| [neigh[0], neigh[4]]), parameters);
        assert_eq!(output.redirects, 2);
    }
}

/// set_tunnel_key of `size` bytes whose words are 1, 2, 3, ...; the first ones mean VNI and remote address.
fn set_tunnel_key(size: i32) -> Vec<Insn> {
    let mut code = vec![Insn::mov_reg(6, 1)];
    for word in 0..11i16 {
        let value = if word == 0 { 77 } else { i32::from(word) };
        code.push(Insn::store_imm(Size::Word, 10, -44 + word * 4, value));
    }
    // tunnel_ext must be 0, and tunnel_label too with IPv4.
    code.push(Insn::store_imm(Size::Half, 10, -22, 0));
    code.push(Insn::store_imm(Size::Word, 10, -20, 0));
    code.extend([
        Insn::mov_reg(1, 6),
        Insn::mov_reg(2, 10),
        Insn::alu(insn::ADD_IMM, 2, -44),
        Insn::mov(3, size),
        Insn::mov(4, 0),
        Insn::call(21),
        Insn::exit(),
    ]);
    code
}

#[test]
fn tunnel_keys_set_are_recorded_in_every_size_the_kernel_takes() {
    if skipped() {
        return;
    }
    for size in [8, 22, 24, 28, 44] {
        let code = set_tunnel_key(size);
        let plain = loaded(KernelMaps::default(), &code, false);
        let copy = loaded(KernelMaps::default(), &code, true);
        let probe = copy.probe().unwrap();
        probe.set(&ProbeInput::default());
        assert_eq!(run(&plain), 0, "size {size}");
        assert_eq!(run(&copy), 0, "size {size}");
        let key = probe.output().tunnel_key.unwrap();
        assert_eq!(i32::try_from(key.size).unwrap(), size);
        assert_eq!((key.bytes[0], key.bytes[4]), (77, 1));
        let copied = key.bytes.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(copied < usize::try_from(size).unwrap(), "{size}: {:?}", key.bytes);
        assert!(size < 44 || key.bytes[40] == 10);
        probe.set(&ProbeInput { fail_set_tunnel_key: true, ..ProbeInput::default() });
        assert_eq!(run(&copy), 22u32.wrapping_neg());
        assert_eq!(probe.output().tunnel_key, None);
    }
}

/// get_tunnel_key of 28 bytes with `flags`; returns the sum of error number and VNI, so that 0 says zeroed memory.
fn get_tunnel_key(flags: i32) -> Vec<Insn> {
    let mut code: Vec<Insn> = (0..7i16).map(|word| Insn::store_imm(Size::Word, 10, -28 + word * 4, 0x1111)).collect();
    code.extend([
        Insn::mov_reg(2, 10),
        Insn::alu(insn::ADD_IMM, 2, -28),
        Insn::mov(3, 28),
        Insn::mov(4, flags),
        Insn::call(20),
        Insn::load(Size::Word, 1, 10, -28),
        Insn::new(insn::ADD_REG, 0, 1, 0, 0),
        Insn::load(Size::Word, 1, 10, -24),
        Insn::new(insn::ADD_REG, 0, 1, 0, 0),
        Insn::exit(),
    ]);
    code
}

#[test]
fn tunnel_keys_on_arrival_come_from_the_probe() {
    if skipped() {
        return;
    }
    let mut key = TunnelKeyIn { bytes: [0; 44], ipv6: false };
    key.bytes[0] = 40;
    key.bytes[4] = 2;
    for (flags, present, expected) in [
        (0, None, 22u32.wrapping_neg()),
        (0, Some(key), 42),
        (1, Some(key), 71u32.wrapping_neg()),
        (1, Some(TunnelKeyIn { ipv6: true, ..key }), 42),
    ] {
        let code = get_tunnel_key(flags);
        let copy = loaded(KernelMaps::default(), &code, true);
        copy.probe().unwrap().set(&ProbeInput { tunnel_key: present, ..ProbeInput::default() });
        assert_eq!(run(&copy), expected, "flags {flags} {present:?}");
        if present.is_none() {
            // The helper itself, on a packet without metadata.
            assert_eq!(run(&loaded(KernelMaps::default(), &code, false)), expected);
        }
    }
}

#[test]
fn map_updates_pass_through_or_fail_as_the_probe_says() {
    if skipped() {
        return;
    }
    let specs = || [map_spec("one", MapKind::Hash, 4, 4, 1), map_spec("other", MapKind::LruHash, 4, 4, 8)];
    // The same helper on two maps of different kinds: the subprogram sees both map pointers.
    let code = |maps: &KernelMaps| {
        let fd = |name| maps.get(name).unwrap().as_fd().as_raw_fd();
        let mut code = vec![
            Insn::load(Size::Word, 2, 1, MARK),
            Insn::store(Size::Word, 10, -4, 2),
            Insn::store_imm(Size::Word, 10, -8, 5),
        ];
        for name in ["other", "one"] {
            code.extend(Insn::load_map(1, fd(name)));
            code.extend([
                Insn::mov_reg(2, 10),
                Insn::alu(insn::ADD_IMM, 2, -4),
                Insn::mov_reg(3, 10),
                Insn::alu(insn::ADD_IMM, 3, -8),
                Insn::mov(4, 0),
                Insn::call(2),
            ]);
        }
        code.push(Insn::exit());
        code
    };
    let build = |instrument| {
        let maps = KernelMaps::create(specs(), None).unwrap();
        let code = code(&maps);
        loaded(maps, &code, instrument)
    };
    let (plain, copy) = (build(false), build(true));
    copy.probe().unwrap().set(&ProbeInput::default());
    for mark in [1, 1, 2, 3] {
        let run = |loaded: &Loaded| {
            let mut ctx = SkbContext { mark, ..SkbContext::default() };
            loaded.program("program").unwrap().test_run(&mut frame(), &mut ctx).unwrap()
        };
        let answers = [run(&plain), run(&copy)];
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0], if mark == 1 { 0 } else { 7u32.wrapping_neg() }, "E2BIG");
        for name in ["one", "other"] {
            let entries = |loaded: &Loaded| loaded.maps().get(name).unwrap().entries().unwrap();
            assert_eq!(entries(&plain), entries(&copy));
        }
    }
    assert_eq!(copy.maps().get("other").unwrap().entries().unwrap().len(), 3);
    copy.probe().unwrap().set(&ProbeInput { fail_map_update: true, ..ProbeInput::default() });
    assert_eq!(run(&copy), 12u32.wrapping_neg(), "ENOMEM");
    assert_eq!(copy.maps().get("other").unwrap().entries().unwrap().len(), 3);
    assert_eq!(copy.probe().unwrap().output().updates_failed, 2);
}

#[test]
fn instrumented_programs_call_each_other_through_a_program_array() {
    if skipped() {
        return;
    }
    for instrument in [false, true] {
        let maps = KernelMaps::create([map_spec("calls", MapKind::ProgArray, 4, 4, 4)], None).unwrap();
        let fd = maps.get("calls").unwrap().as_fd().as_raw_fd();
        let mut first = vec![Insn::mov_reg(6, 1), Insn::call(118), Insn::mov_reg(1, 6)];
        first.extend(Insn::load_map(2, fd));
        first.extend([Insn::mov(3, 2), Insn::call(12), Insn::mov(0, 1), Insn::exit()]);
        let second = [Insn::call(7), Insn::mov(0, 55), Insn::exit()];
        let loaded = Loaded::assemble(maps, &[("program", &first), ("second", &second)], LICENSE, instrument).unwrap();
        if let Some(probe) = loaded.probe() {
            probe.set(&ProbeInput::default());
        }
        assert_eq!(run(&loaded), 1, "an empty slot falls through");
        loaded.set_call("calls", 2, "second").unwrap();
        assert_eq!(run(&loaded), 55);
        let array = loaded.maps().get("calls").unwrap();
        assert_eq!(array.entries().unwrap().len(), 1);
        array.remove(&2u32.to_ne_bytes()).unwrap();
        assert_eq!(run(&loaded), 1);
        assert!(array.get(&0u32.to_ne_bytes()).unwrap().is_none());
    }
}

/// A bpf file system of the test's own.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("datapath-kernel-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let status = std::process::Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&folder).status();
        assert!(status.unwrap().success(), "mount -t bpf");
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg(&self.0).status();
        assert!(status.unwrap().success(), "umount");
        std::fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_pinned_map_is_opened_again_only_with_its_own_layout() {
    if skipped() {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.0.join("pinned");
    let spec = map_spec("pinned", MapKind::Hash, 4, 8, 4);
    let map = datapath_kernel::KernelMap::create(spec.clone()).unwrap();
    map.set(&[1; 4], &[2; 8], UpdateMode::Any).unwrap();
    map.pin(&path).unwrap();
    drop(map);
    let again = datapath_kernel::KernelMap::open_pinned(spec.clone(), &path);
    let other = datapath_kernel::KernelMap::open_pinned(MapSpec { value_size: 16, ..spec }, &path);
    drop(mounted);
    assert_eq!(again.unwrap().get(&[1; 4]).unwrap(), Some(vec![2; 8]));
    assert_eq!(other.unwrap_err().to_string(), "pinned map `pinned` has value size 8, this build needs 16");
}
