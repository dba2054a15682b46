//! What each path costs in the kernel: nanoseconds per packet by `BPF_PROG_TEST_RUN` with repeat.
//!
//! Every run goes through a small wrapper that first restores the header bytes (so that a path that rewrites the packet
//! stays the same path), picks a flow by writing its port, and then tail-calls the program. The same wrapper in front of
//! a program that only returns is subtracted; the floor is the empty program, called directly, in the same process.
//! Multiples of the floor are (net + floor) / floor.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail};
use datapath_abi::{CallSlot, MapId, config};
use datapath_kernel::insn::{Insn, Size};
use datapath_kernel::{LoadOptions, Loaded, Program, ProgramKind, ProgramSource, SkbContext, TestNet, pin_to_cpu};
use datapath_maps::UpdateMode;
use zerocopy::IntoBytes;

use crate::paths::{self, CLIENT_IFINDEX, Path, SERVER_IFINDEX, Segment, TUNNEL_IFINDEX};

/// Slots of the object's `calls` map that it does not use itself.
const UNDER_TEST: u32 = 14;
const STUB: u32 = 15;
const ROUNDS: usize = 11;
const REPEAT: u32 = 500_000;

/// What a path cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Nanoseconds of the empty program.
    pub floor: u32,
    /// Nanoseconds beyond the wrapper: smallest of the rounds.
    pub net: i64,
    /// Median of the rounds.
    pub net_median: i64,
}

impl Cost {
    /// Multiple of the floor.
    #[must_use]
    pub fn multiple(&self) -> f64 {
        let floor = f64::from(self.floor);
        let net = f64::from(i32::try_from(self.net).unwrap_or(i32::MAX));
        (net + floor) / floor
    }
}

/// How a path is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Flows that take turns, one packet each.
    pub flows: u16,
    /// Policy entries beside those that match, per endpoint and direction.
    pub more_policy: u32,
}

/// Measures one path.
///
/// # Errors
/// Not root, or the kernel refuses something.
pub fn measure(path: &Path, load: &Load) -> Result<Cost> {
    let net = TestNet::with_devices(&[TUNNEL_IFINDEX, CLIENT_IFINDEX, SERVER_IFINDEX])?;
    let _inside = net.enter()?;
    let _pinned = pin_to_cpu(1)?;
    let mut settings = paths::settings(1000, path.program != "from_netdev");
    if path.asked {
        // The verdict alone, without the report of it.
        settings.flags &= !config::VERDICT_EVENTS;
    }
    let globals = [(config::SYMBOL, settings.as_bytes())];
    let mut object =
        Loaded::open(datapath_bytecode::OBJECT, &LoadOptions { globals: &globals, ..LoadOptions::default() })?;
    for (slot, name) in CallSlot::ALL {
        object.set_call(MapId::Calls.name(), *slot as u32, name)?;
    }
    object.set_call(MapId::Calls.name(), UNDER_TEST, path.program)?;
    paths::fill(object.maps_mut(), load.more_policy)?;
    let empty = program("empty", &[Insn::mov(0, 0), Insn::exit()])?;
    let calls = object.maps().get(MapId::Calls.name()).context("no map `calls`")?;
    calls.set(STUB.as_bytes(), &empty.as_fd().as_raw_fd().to_ne_bytes(), UpdateMode::Any)?;
    let fd = calls.as_fd().as_raw_fd();

    let mut context =
        SkbContext { ifindex: if path.program == "from_netdev" { 1 } else { path.ifindex }, ..SkbContext::default() };
    let entry = object.program(path.program)?;
    for flow in 0..load.flows {
        for segment in [Segment::Syn, Segment::Ack] {
            let code = entry.test_run(&mut path.frame(flow, segment), &mut context.clone())?;
            if code == 2 {
                bail!("{}: the packet of flow {flow} was dropped", path.name);
            }
        }
    }
    let frame = path.frame(0, Segment::Ack);
    let tested = program("wrapper", &wrapper(&frame, fd, UNDER_TEST, load.flows, path.ipv6))?;
    let stub = program("stub", &wrapper(&frame, fd, STUB, load.flows, path.ipv6))?;
    context.mark = 0;
    let code = tested.test_run(&mut frame.clone(), &mut context.clone())?;
    if code == 2 {
        bail!("{}: dropped behind the wrapper", path.name);
    }
    let mut floors = Vec::new();
    let mut nets = Vec::new();
    for _ in 0..ROUNDS {
        floors.push(empty.bench(&frame, &context, REPEAT)?);
        let with = i64::from(tested.bench(&frame, &context, REPEAT)?);
        nets.push(with - i64::from(stub.bench(&frame, &context, REPEAT)?));
    }
    nets.sort_unstable();
    floors.sort_unstable();
    Ok(Cost { floor: floors[0], net: nets[0], net_median: nets[nets.len() / 2] })
}

fn program(name: &str, insns: &[Insn]) -> Result<Program> {
    let source = ProgramSource { name, kind: ProgramKind::Classifier, insns, license: c"GPL", btf: None };
    Ok(Program::load(&source)?)
}

/// Restores the headers of `frame`, picks one of `flows` source ports, and tail-calls `slot`.
fn wrapper(frame: &[u8], calls: i32, slot: u32, flows: u16, ipv6: bool) -> Vec<Insn> {
    let headers = if ipv6 { 74 } else { 56 };
    let mut code = vec![
        Insn::mov_reg(6, 1),
        Insn::load(Size::Word, 7, 6, 76), // data
        Insn::load(Size::Word, 8, 6, 80), // data_end
        Insn::mov_reg(2, 7),
        Insn::alu(0x07, 2, headers),
    ];
    let check = code.len();
    code.push(Insn::exit()); // patched below
    let words = usize::try_from(headers).unwrap_or(0) / 2;
    for (index, pair) in frame.chunks_exact(2).take(words).enumerate() {
        let value = i32::from(u16::from_ne_bytes([pair[0], pair[1]]));
        code.push(Insn::store_imm(Size::Half, 7, i16::try_from(index * 2).unwrap_or(0), value));
    }
    if flows > 1 {
        // The flow's number is kept in cb[0] of the context, which test runs carry from repeat to repeat.
        code.extend([
            Insn::load(Size::Word, 3, 6, 48),
            Insn::alu(0x07, 3, 1),
            Insn::store(Size::Word, 6, 48, 3),
            Insn::alu(0x97, 3, i32::from(flows)), // modulo
            Insn::alu(
                0x07,
                3,
                i32::from(u16::from_be_bytes([frame[if ipv6 { 54 } else { 34 }], frame[if ipv6 { 55 } else { 35 }]])),
            ),
            Insn::alu(0xdc, 3, 16), // to big endian
            Insn::store(Size::Half, 7, if ipv6 { 54 } else { 34 }, 3),
        ]);
    }
    code.push(Insn::mov_reg(1, 6));
    code.extend(Insn::load_map(2, calls));
    code.push(Insn::mov(3, i32::try_from(slot).unwrap_or(0)));
    code.push(Insn::call(12));
    let out = code.len();
    code.push(Insn::mov(0, 2));
    code.push(Insn::exit());
    code[check] = Insn::jump_reg(0x2d, 2, 8, i16::try_from(out - check - 1).unwrap_or(0));
    code
}
