//! The instrumented copy of a program: calls of some helpers become calls of small subprograms appended to it.
//!
//! The call stays in its instruction slot, so no jump moves. A subprogram gets r1 to r5 and returns r0, like a helper;
//! r6 to r9 are preserved either way. It reads and writes the [`crate::Probe`]'s value by address, without stack, and
//! calls the real helper where there is an effect to keep.
//!
//! The copy has no BTF: all its functions are static and the verifier follows every call with the caller's registers,
//! so context, stack and map pointers may be passed.
//!
//! Helper numbers: `include/uapi/linux/bpf.h`.

use std::collections::BTreeMap;

use crate::insn::{self, Insn, Size};
use crate::probe::{RANDOM, at};

const MAP_UPDATE_ELEM: i32 = 2;
const KTIME_GET_NS: i32 = 5;
const GET_PRANDOM_U32: i32 = 7;
const SKB_GET_TUNNEL_KEY: i32 = 20;
const SKB_SET_TUNNEL_KEY: i32 = 21;
const REDIRECT: i32 = 23;
const JIFFIES64: i32 = 118;
const KTIME_GET_BOOT_NS: i32 = 125;
const REDIRECT_NEIGH: i32 = 152;
const REDIRECT_PEER: i32 = 155;
const KTIME_GET_COARSE_NS: i32 = 160;

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
const EPROTO: i32 = 71;

/// Places in `struct bpf_tunnel_key`: a helper call that gives at least the first number of bytes has this access.
/// Alternatives between known sizes: the kernel takes 8, 22, 24, 28 and 44.
const TUNNEL_PIECES: [(i32, i16, Size); 12] = [
    (8, 0, Size::Word),
    (8, 4, Size::Word),
    (22, 8, Size::Word),
    (22, 12, Size::Word),
    (22, 16, Size::Word),
    (22, 20, Size::Half),
    (24, 22, Size::Half),
    (28, 24, Size::Word),
    (44, 28, Size::Word),
    (44, 32, Size::Word),
    (44, 36, Size::Word),
    (44, 40, Size::Word),
];

/// Code of one subprogram. Forward jumps go to the end of a block that is closed later.
#[derive(Default)]
struct Code {
    insns: Vec<Insn>,
}

impl Code {
    fn put(&mut self, insn: Insn) {
        self.insns.push(insn);
    }

    fn put_all(&mut self, insns: impl IntoIterator<Item = Insn>) {
        self.insns.extend(insns);
    }

    /// A jump whose target is not known yet.
    fn open(&mut self, code: u8, dst: u8, imm: i32) -> usize {
        self.put(Insn::jump_imm(code, dst, imm, 0));
        self.insns.len() - 1
    }

    /// As [`Self::open`], comparing two registers.
    fn open_reg(&mut self, code: u8, dst: u8, src: u8) -> usize {
        self.put(Insn::jump_reg(code, dst, src, 0));
        self.insns.len() - 1
    }

    /// The jump goes to the next instruction.
    fn close(&mut self, jump: usize) {
        let distance = self.insns.len() - jump - 1;
        // Subprograms are some dozen instructions long.
        self.insns[jump].off = i16::try_from(distance).unwrap_or(0);
    }

    /// `*(u32 *)(r0 + at) += 1`, by way of r5.
    fn count(&mut self, at: i16) {
        self.put(Insn::load(Size::Word, 5, 0, at));
        self.put(Insn::alu(insn::ADD_IMM, 5, 1));
        self.put(Insn::store(Size::Word, 0, at, 5));
    }

    fn give_up(&mut self, errno: i32) {
        self.put(Insn::mov(0, -errno));
        self.put(Insn::exit());
    }

    /// Copies the first r3 bytes of a tunnel key piece by piece.
    fn tunnel_pieces(&mut self, mut each: impl FnMut(&mut Self, i16, Size)) {
        let mut jumps = Vec::new();
        let mut known = 0;
        for (needed, offset, size) in TUNNEL_PIECES {
            if needed != known {
                jumps.push(self.open(insn::JLT_IMM, 3, needed));
                known = needed;
            }
            each(self, offset, size);
        }
        for jump in jumps {
            self.close(jump);
        }
    }
}

/// r0 = the number at `at`.
fn number(probe: i32, at: i16) -> Code {
    let mut code = Code::default();
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.put(Insn::load(Size::Double, 0, 0, at));
    code.put(Insn::exit());
    code
}

fn random(probe: i32) -> Code {
    let mut code = Code::default();
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.put(Insn::load(Size::Word, 1, 0, at::RANDOM_NEXT));
    code.count(at::RANDOM_NEXT);
    code.put(Insn::alu(insn::AND_IMM, 1, i32::try_from(RANDOM - 1).unwrap_or(0)));
    code.put(Insn::alu(insn::LSH_IMM, 1, 2));
    code.put(Insn::new(insn::ADD_REG, 0, 1, 0, 0));
    code.put(Insn::load(Size::Word, 0, 0, at::RANDOM));
    code.put(Insn::exit());
    code
}

fn map_update(probe: i32) -> Code {
    let mut code = Code::default();
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.put(Insn::load(Size::Word, 5, 0, at::FAIL_UPDATE));
    let real = code.open(insn::JEQ_IMM, 5, 0);
    code.count(at::UPDATES_FAILED);
    code.give_up(ENOMEM);
    code.close(real);
    code.put(Insn::call(MAP_UPDATE_ELEM));
    code.put(Insn::exit());
    code
}

/// `flags`: the register that holds them.
fn redirect(probe: i32, helper: i32, kind: i32, flags: u8) -> Code {
    let mut code = Code::default();
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.count(at::REDIRECT_COUNT);
    code.put(Insn::store_imm(Size::Word, 0, at::REDIRECT_KIND, kind));
    code.put(Insn::store(Size::Word, 0, at::REDIRECT_IFINDEX, 1));
    code.put(Insn::store(Size::Double, 0, at::REDIRECT_FLAGS, flags));
    if helper == REDIRECT_NEIGH {
        code.put(Insn::store(Size::Word, 0, at::NEIGH_LEN, 3));
        let none = code.open(insn::JEQ_IMM, 3, 0);
        for word in 0..5 {
            code.put(Insn::load(Size::Word, 5, 2, word * 4));
            code.put(Insn::store(Size::Word, 0, at::NEIGH + word * 4, 5));
        }
        code.close(none);
    } else {
        code.put(Insn::store_imm(Size::Word, 0, at::NEIGH_LEN, 0));
    }
    code.put(Insn::call(helper));
    code.put(Insn::exit());
    code
}

fn set_tunnel_key(probe: i32) -> Code {
    let mut code = Code::default();
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.put(Insn::load(Size::Word, 5, 0, at::FAIL_SET_TUNNEL));
    let real = code.open(insn::JEQ_IMM, 5, 0);
    code.give_up(EINVAL);
    code.close(real);
    code.count(at::TUNNEL_OUT_COUNT);
    code.put(Insn::store(Size::Word, 0, at::TUNNEL_OUT_SIZE, 3));
    code.put(Insn::store(Size::Double, 0, at::TUNNEL_OUT_FLAGS, 4));
    code.tunnel_pieces(|code, offset, size| {
        code.put(Insn::load(size, 5, 2, offset));
        code.put(Insn::store(size, 0, at::TUNNEL_OUT + offset, 5));
    });
    code.put(Insn::call(SKB_SET_TUNNEL_KEY));
    code.put(Insn::exit());
    code
}

/// As the helper: on an error the key is zeroed.
fn get_tunnel_key(probe: i32) -> Code {
    let mut code = Code::default();
    let zero = |code: &mut Code| {
        code.tunnel_pieces(|code, offset, size| code.put(Insn::store_imm(size, 2, offset, 0)));
    };
    code.put_all(Insn::load_map_value(0, probe, 0));
    code.count(at::CALLS);
    code.put(Insn::load(Size::Word, 5, 0, at::TUNNEL_IN_PRESENT));
    let present = code.open(insn::JNE_IMM, 5, 0);
    zero(&mut code);
    code.give_up(EINVAL);
    code.close(present);
    // BPF_F_TUNINFO_IPV6 must agree with the family.
    code.put(Insn::alu(insn::AND_IMM, 4, 1));
    code.put(Insn::load(Size::Word, 5, 0, at::TUNNEL_IN_IPV6));
    let other_family = code.open_reg(insn::JNE_REG, 4, 5);
    code.tunnel_pieces(|code, offset, size| {
        code.put(Insn::load(size, 5, 0, at::TUNNEL_IN + offset));
        code.put(Insn::store(size, 2, offset, 5));
    });
    code.put(Insn::mov(0, 0));
    code.put(Insn::exit());
    code.close(other_family);
    zero(&mut code);
    code.give_up(EPROTO);
    code
}

/// The subprogram that stands for a helper; `None`: the helper stays.
fn substitute(helper: i32, probe: i32) -> Option<Code> {
    Some(match helper {
        MAP_UPDATE_ELEM => map_update(probe),
        KTIME_GET_NS | KTIME_GET_BOOT_NS | KTIME_GET_COARSE_NS => number(probe, at::CLOCK),
        JIFFIES64 => number(probe, at::JIFFIES),
        GET_PRANDOM_U32 => random(probe),
        SKB_GET_TUNNEL_KEY => get_tunnel_key(probe),
        SKB_SET_TUNNEL_KEY => set_tunnel_key(probe),
        REDIRECT => redirect(probe, REDIRECT, 1, 2),
        REDIRECT_PEER => redirect(probe, REDIRECT_PEER, 2, 2),
        REDIRECT_NEIGH => redirect(probe, REDIRECT_NEIGH, 3, 4),
        _ => return None,
    })
}

/// The instrumented copy. `probe`: descriptor of the probe's map.
pub(crate) fn instrument(program: &[Insn], probe: i32) -> Vec<Insn> {
    let mut copy = program.to_vec();
    let mut starts: BTreeMap<i32, usize> = BTreeMap::new();
    let mut second_half = false;
    for (pc, insn) in program.iter().enumerate() {
        // The second slot of a 64-bit load is data.
        if second_half {
            second_half = false;
            continue;
        }
        second_half = insn.code == insn::LD_IMM64;
        let Some(helper) = insn.helper() else {
            continue;
        };
        let start = match starts.get(&helper) {
            Some(start) => *start,
            None => {
                let Some(code) = substitute(helper, probe) else {
                    continue;
                };
                let start = copy.len();
                copy.extend(code.insns);
                starts.insert(helper, start);
                start
            }
        };
        // Programs are far shorter than 2^31.
        copy[pc] = Insn::call_local(i32::try_from(start - pc - 1).unwrap_or(0));
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_their_slot_and_reach_a_subprogram_each_helper_shares() {
        let program = [
            Insn::call(KTIME_GET_NS),
            Insn::load_map(1, 3)[0],
            // Data of the 64-bit load that looks like a call.
            Insn::call(KTIME_GET_NS),
            Insn::call(1),
            Insn::call(KTIME_GET_NS),
            Insn::exit(),
        ];
        let copy = instrument(&program, 7);
        let single = number(7, at::CLOCK).insns.len();
        assert_eq!(copy.len(), program.len() + single);
        for pc in [0usize, 4] {
            assert_eq!(copy[pc].src(), insn::PSEUDO_CALL);
            assert_eq!(pc + 1 + usize::try_from(copy[pc].imm).unwrap(), program.len());
        }
        assert_eq!(copy[1..4], program[1..4]);
    }

    #[test]
    fn a_program_without_replaced_helpers_is_unchanged() {
        let program = [Insn::call(1), Insn::exit()];
        assert_eq!(instrument(&program, 7), program);
    }
}
