//! Keys as 64-bit words: loading, hashing. Deterministic: one fixed seed, no per-process state, so that nothing
//! depends on the run.

const SEED: u64 = 0x9ae1_6a3b_2f90_404f;
const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// The low half.
#[inline]
pub(super) fn low32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high half.
#[inline]
pub(super) fn high32(value: u64) -> u32 {
    low32(value >> 32)
}

/// 64 × 64 → 128 bit product, folded: every input bit reaches every output bit.
#[inline]
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let [low, high] = [product, product >> 64].map(|half| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&half.to_le_bytes()[..8]);
        u64::from_le_bytes(bytes)
    });
    low ^ high
}

/// One step of the hash.
#[inline]
pub(super) fn absorb(state: u64, word: u64) -> u64 {
    mix(state ^ word, MULTIPLIER) ^ word.rotate_left(29)
}

/// The hash's start for a key class (`salt`: prefix length, or 0).
#[inline]
pub(super) fn start(salt: u32) -> u64 {
    SEED ^ (u64::from(salt) << 32)
}

/// The hash's end: 32 bits.
#[inline]
pub(super) fn finish(state: u64) -> u32 {
    high32(mix(state, SEED | 1))
}

/// The last 0 to 7 bytes of a key as a little-endian word.
#[inline]
fn tail_le(bytes: &[u8]) -> u64 {
    if let Some((first, rest)) = bytes.split_first_chunk::<4>() {
        let mut word = u64::from(u32::from_le_bytes(*first));
        for (i, byte) in rest.iter().enumerate() {
            word |= u64::from(*byte) << (32 + 8 * i);
        }
        word
    } else {
        let mut word = 0;
        for (i, byte) in bytes.iter().enumerate() {
            word |= u64::from(*byte) << (8 * i);
        }
        word
    }
}

/// The words of a key, the last one padded with zeros.
#[inline]
pub(super) fn words_le(key: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (full, tail) = key.as_chunks::<8>();
    full.iter().map(|chunk| u64::from_le_bytes(*chunk)).chain((!tail.is_empty()).then(|| tail_le(tail)))
}

/// Words in network order (first byte is the highest), as prefixes need them; zero-padded.
#[inline]
pub(super) fn load_be(data: &[u8], into: &mut [u64]) {
    for (word, le) in into.iter_mut().zip(words_le(data)) {
        *word = le.swap_bytes();
    }
}

/// Hash of a whole key.
#[inline]
pub(super) fn hash(key: &[u8]) -> u32 {
    finish(words_le(key).fold(start(0), absorb))
}
