//! Packet and checksum helpers: our model, in every lane, against the kernel's own.
//!
//! A random program calls up to three helpers with random arguments, writes down every result, and ends; result,
//! packet and context must be the same everywhere. `WEIR_RANDOM_SEED` and `WEIR_RANDOM_PROGRAMS` replay or extend a run.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

#[path = "support/asm.rs"]
#[allow(unused_imports, reason = "every test uses another part")]
mod asm;
#[path = "support/kernel.rs"]
mod kernel;

use std::sync::Arc;

use asm::{DW, H, W, add, call, copy, exit, load, mov, store, wide};
use simulator_vm::isa::Raw;
use simulator_vm::{Checked, Engine, Env, Helper, Lane, Object, Rbpf, Skb};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Bytes of the buffer at r10-64.
const BUFFER: i32 = 64;

/// Loads r1 to r5; `None` is the context, numbers below the stack's are offsets of the buffer.
enum Argument {
    Context,
    Buffer,
    Number(u64),
}

use Argument::{Buffer, Context, Number};

fn arguments(random: &mut Random, helper: Helper, len: u64) -> Vec<Argument> {
    // A place in the packet, or at its end, or far outside.
    let at = |random: &mut Random| match random.below(8) {
        0 => len - random.below(4),
        1 => random.pick(&[0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff]),
        _ => random.below(len),
    };
    let length = |random: &mut Random| 1 + random.below(u64::from(BUFFER.unsigned_abs()));
    let flag = |random: &mut Random, known: &[u64]| if random.below(12) == 0 { 1 << 20 } else { random.pick(known) };
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list below says which helpers are called")]
    match helper {
        Helper::StoreBytes => {
            vec![Context, Number(at(random)), Buffer, Number(length(random)), Number(flag(random, &[0, 1, 2, 3]))]
        }
        Helper::LoadBytes => vec![Context, Number(at(random)), Buffer, Number(length(random))],
        Helper::L3CsumReplace => {
            let size = random.pick(&[0, 2, 4, 3]);
            let from = if size == 0 && random.below(4) != 0 { 0 } else { random.next() };
            let flags = flag(random, &[size, size, size, 0x10 | size]);
            vec![Context, Number(at(random)), Number(from), Number(random.next()), Number(flags)]
        }
        Helper::L4CsumReplace => {
            let size = random.pick(&[0, 2, 4, 3]);
            let from = if size == 0 && random.below(4) != 0 { 0 } else { random.next() };
            let flags = flag(random, &[size, 0x10 | size, 0x20 | size, 0x30 | size, 0x60 | size]);
            vec![Context, Number(at(random)), Number(from), Number(random.next()), Number(flags)]
        }
        Helper::CsumDiff => {
            let size = |random: &mut Random| random.pick(&[0, 4, 8, 16, 20, 64]);
            vec![Buffer, Number(size(random)), Buffer, Number(size(random)), Number(random.next() & 0xffff_ffff)]
        }
        Helper::ChangeTail => {
            let to = random.pick(&[13, 14, 33, 40, len, len + 1, len + 100, 1500, 16064, 16065, 0]);
            vec![Context, Number(to), Number(u64::from(random.below(12) == 0))]
        }
        Helper::ChangeHead => {
            vec![Context, Number(random.pick(&[0, 14, 20, 40, 100, 20_000])), Number(u64::from(random.below(12) == 0))]
        }
        Helper::PullData => vec![Context, Number(random.pick(&[0, 14, len, len + 1, 100]))],
        Helper::AdjustRoom => {
            let difference = random.pick(&[0, 8, 20, 50, 4095, 4096]);
            let difference = if random.below(2) == 0 { difference } else { difference.wrapping_neg() };
            vec![
                Context,
                Number(difference & 0xffff_ffff),
                Number(random.pick(&[0, 1, 1, 0, 2])),
                Number(random.pick(&[0, 1, 32, 33])),
            ]
        }
        Helper::ChangeType => vec![Context, Number(random.below(6))],
        Helper::SetHash => vec![Context, Number(random.next())],
        Helper::GetTunnelKey => {
            vec![Context, Buffer, Number(random.pick(&[28, 44, 24, 8, 20])), Number(random.pick(&[0, 1, 16, 2]))]
        }
        Helper::SetTunnelKey => {
            let size = random.pick(&[28, 44, 24, 22, 8, 20, 28]);
            vec![Context, Buffer, Number(size), Number(random.pick(&[0, 1, 2, 4, 8, 16, 15, 32]))]
        }
        Helper::Redirect | Helper::RedirectPeer => {
            vec![Number(random.below(4)), Number(random.pick(&[0, 1, 2, 0]))]
        }
        Helper::RedirectNeigh => {
            vec![Number(random.below(4)), Number(0), Number(0), Number(random.pick(&[0, 1]))]
        }
        other => {
            assert_eq!(other, Helper::HashInvalid);
            vec![Context]
        }
    }
}

const HELPERS: &[Helper] = &[
    Helper::StoreBytes,
    Helper::LoadBytes,
    Helper::L3CsumReplace,
    Helper::L4CsumReplace,
    Helper::CsumDiff,
    Helper::ChangeTail,
    Helper::ChangeHead,
    Helper::PullData,
    Helper::AdjustRoom,
    Helper::ChangeType,
    Helper::SetHash,
    Helper::HashInvalid,
    Helper::GetTunnelKey,
    Helper::SetTunnelKey,
    Helper::Redirect,
    Helper::RedirectPeer,
    Helper::RedirectNeigh,
];

/// The program, and what it calls in words.
fn program(random: &mut Random, len: u64) -> (Vec<Raw>, String) {
    let mut code = vec![copy(6, 1), mov(8, 0)];
    let mut text = String::new();
    for word in 0..8 {
        code.extend(wide(0, random.next()));
        code.push(store(DW, 10, -64 + 8 * word, 0));
    }
    let mut used = Vec::new();
    for result in 0..1 + random.below(3) {
        let helper = HELPERS[usize::try_from(random.below(HELPERS.len() as u64)).unwrap()];
        // A test run's packet has no transport header. Linux marks that with 0xffff, and moves the mark along when it
        // makes room in front: then change_tail takes it for an offset. On a received packet there is always one.
        let has = |other: Helper| used.contains(&other);
        if helper == Helper::ChangeTail && (has(Helper::ChangeHead) || has(Helper::AdjustRoom)) {
            continue;
        }
        // Linux moves headers that are not there when the packet was cut below them before.
        if helper == Helper::AdjustRoom && has(Helper::ChangeTail) {
            continue;
        }
        used.push(helper);
        if helper == Helper::SetTunnelKey {
            // The extension and, mostly, the label must be zero.
            code.push(asm::set(H, 10, -64 + 22, 0));
            if random.below(4) != 0 {
                code.push(asm::set(W, 10, -64 + 24, 0));
            }
        }
        text += helper.name();
        text += "(";
        for (register, argument) in (1u8..).zip(arguments(random, helper, len)) {
            match argument {
                Context => code.push(copy(register, 6)),
                Buffer => code.extend([copy(register, 10), add(register, -BUFFER)]),
                Number(number) => {
                    text += &format!("{number:#x} ");
                    code.extend(wide(register, number));
                }
            }
        }
        text += ") ";
        code.push(call(helper));
        // cb[result] = r0, and the buffer into r8.
        code.push(store(W, 6, 48 + 4 * i16::try_from(result).unwrap(), 0));
        for word in 0..8 {
            code.push(load(DW, 0, 10, -64 + 8 * word));
            code.extend([asm::insn(0x27, 8, 0, 0, 31), asm::insn(0x0f, 8, 0, 0, 0)]);
        }
    }
    // cb[3] = len, cb[4] = hash of the buffer; mark = protocol; the result is the linear length.
    code.extend([load(W, 0, 6, 0), store(W, 6, 60, 0), store(W, 6, 64, 8)]);
    code.extend([load(W, 0, 6, 16), store(W, 6, 8, 0)]);
    code.extend([load(W, 2, 6, 76), load(W, 0, 6, 80), asm::insn(0x1f, 0, 2, 0, 0), exit()]);
    (code, text)
}

fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..14).map(|_| random.byte()).collect();
    // Without the group bit the kernel finds another packet type.
    frame[0] = 2;
    if random.below(2) == 0 {
        frame[12..14].copy_from_slice(&[8, 0]);
        frame.extend([0x45, 0, 0, 60, 1, 2, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    } else {
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0, 0, 60, 17, 64]);
        frame.extend((0..32).map(|_| random.byte()));
    }
    frame.extend((0..random.below(200)).map(|_| if random.below(4) == 0 { 0 } else { random.byte() }));
    frame
}

#[derive(Debug, PartialEq)]
struct Outcome {
    code: u32,
    frame: Vec<u8>,
    mark: u32,
    cb: [u32; 5],
}

fn in_engine(engine: &mut dyn Engine, frame: &[u8]) -> Outcome {
    // In the kernel's test run a frame to another address is for another host.
    let mut skb = Skb { pkt_type: 3, ..Skb::new(frame.to_vec(), 1) };
    let run = engine.run_named("test", &mut skb, &Env::default()).unwrap();
    Outcome { code: run.code, frame: skb.data, mark: skb.mark, cb: skb.cb }
}

fn in_kernel(code: &[Raw], frame: &[u8]) -> Result<Outcome, String> {
    let mut frame = frame.to_vec();
    let mut context = [0u8; 192];
    context[40] = 1;
    let retval = kernel::run_packet(code, &mut frame, &mut context)?;
    let word = |at: usize| u32::from_le_bytes([context[at], context[at + 1], context[at + 2], context[at + 3]]);
    Ok(Outcome { code: retval, frame, mark: word(8), cb: [48, 52, 56, 60, 64].map(word) })
}

#[test]
fn helpers_do_what_the_kernels_do() {
    let setting = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let seed = setting("WEIR_RANDOM_SEED", 20_261_122);
    println!("seed: WEIR_RANDOM_SEED={seed}");
    let root = kernel::is_root();
    if !root {
        println!("skip: kernel-bpf: not root");
    }
    let mut random = Random(seed);
    let mut failed = Vec::new();
    for number in 0..setting("WEIR_RANDOM_PROGRAMS", 2000) {
        let frame = frame(&mut random);
        let (code, text) = program(&mut random, frame.len() as u64);
        let object = Arc::new(Object::assemble(vec![("test", code.clone())], vec![]).unwrap());
        let mine = in_engine(&mut Checked::new(Arc::clone(&object), 1).unwrap(), &frame);
        let mut engines = vec![Rbpf::new(Arc::clone(&object), Lane::Interpreter, 1).unwrap()];
        if cfg!(target_arch = "x86_64") {
            engines.push(Rbpf::new(object, Lane::Jit, 1).unwrap());
        }
        for mut engine in engines {
            assert_eq!(mine, in_engine(&mut engine, &frame), "{number}: {}: {text}", engine.name());
        }
        if root {
            let kernel = in_kernel(&code, &frame).unwrap_or_else(|error| panic!("{number}: {text}: {error}"));
            if mine != kernel {
                failed.push(format!(
                    "{number}: {text} on {} bytes\n  mine   {mine:x?}\n  kernel {kernel:x?}",
                    frame.len()
                ));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} differ\n{}",
        failed.len(),
        failed.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
    );
}
