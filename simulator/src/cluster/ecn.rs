//! Explicit congestion notification through tunnels (RFC 6040), as the kernel's `INET_ECN_encapsulate` and
//! `INET_ECN_decapsulate` do it. Values are whole traffic classes; the lower two bits count.

const MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The outer class: that of the tunnel, with the inner packet's ECN. Congestion that was met before the tunnel stays inside.
pub const fn outside(tunnel: u8, inner: Option<u8>) -> u8 {
    let ecn = match inner {
        Some(inner) if inner & MASK == CE => ECT_0,
        Some(inner) => inner & MASK,
        None => NOT_ECT,
    };
    tunnel & !MASK | ecn
}

/// The inner class after the tunnel: `Some(None)` as it was, `None`: the packet must be dropped, since congestion was met
/// and its ends could not be told.
#[expect(clippy::option_option, reason = "dropped, unchanged or changed")]
pub const fn inside(outer: u8, inner: Option<u8>) -> Option<Option<u8>> {
    let Some(class) = inner else { return Some(None) };
    match (class & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(Some(class | CE)),
        (ECT_0, ECT_1) => Some(Some(class & !MASK | ECT_1)),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040, figure 4; rows are what is inside, columns what is outside: not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn what_comes_out_is_what_rfc_6040_says() {
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        for (inner, wanted) in [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ] {
            let class = 0xb8 | inner;
            let got = outer.map(|outer| inside(outer, Some(class)).map(|changed| changed.unwrap_or(class)));
            assert_eq!(got, wanted.map(|ecn| ecn.map(|ecn| 0xb8 | ecn)), "{inner}");
        }
    }

    #[test]
    fn what_goes_out_hides_congestion_met_before() {
        let got = [NOT_ECT, ECT_0, ECT_1, CE].map(|inner| outside(0x20, Some(0xb8 | inner)));
        assert_eq!(got, [0x20, 0x22, 0x21, 0x22]);
        assert_eq!(outside(0x20, None), 0x20);
    }
}
