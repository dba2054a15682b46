//! Helper functions by the kernel's numbers (`___BPF_FUNC_MAPPER` in linux/bpf.h).

macro_rules! helpers {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// A helper that this crate has.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Helper {
            $(#[doc = concat!("`bpf_", $text, "`")] $name = $number,)*
        }

        impl Helper {
            /// Every helper, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// From the number in a call instruction.
            #[must_use]
            pub const fn from_number(number: i32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The number in linux/bpf.h.
            #[must_use]
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// Name without prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

helpers! {
    MapLookup = 1, "map_lookup_elem";
    MapUpdate = 2, "map_update_elem";
    MapDelete = 3, "map_delete_elem";
    KtimeGetNs = 5, "ktime_get_ns";
    Prandom = 7, "get_prandom_u32";
    ProcessorId = 8, "get_smp_processor_id";
    StoreBytes = 9, "skb_store_bytes";
    L3CsumReplace = 10, "l3_csum_replace";
    L4CsumReplace = 11, "l4_csum_replace";
    TailCall = 12, "tail_call";
    GetTunnelKey = 20, "skb_get_tunnel_key";
    SetTunnelKey = 21, "skb_set_tunnel_key";
    Redirect = 23, "redirect";
    LoadBytes = 26, "skb_load_bytes";
    CsumDiff = 28, "csum_diff";
    ChangeType = 32, "skb_change_type";
    HashRecalc = 34, "get_hash_recalc";
    ChangeTail = 38, "skb_change_tail";
    PullData = 39, "skb_pull_data";
    HashInvalid = 41, "set_hash_invalid";
    ChangeHead = 43, "skb_change_head";
    SetHash = 48, "set_hash";
    AdjustRoom = 50, "skb_adjust_room";
    Jiffies64 = 118, "jiffies64";
    KtimeBootNs = 125, "ktime_get_boot_ns";
    RingOutput = 130, "ringbuf_output";
    RingReserve = 131, "ringbuf_reserve";
    RingSubmit = 132, "ringbuf_submit";
    RingDiscard = 133, "ringbuf_discard";
    RedirectNeigh = 152, "redirect_neigh";
    RedirectPeer = 155, "redirect_peer";
    KtimeCoarseNs = 160, "ktime_get_coarse_ns";
}

#[cfg(test)]
mod tests {
    use super::Helper;

    #[test]
    fn numbers_are_ascending_and_come_back() {
        assert!(Helper::ALL.windows(2).all(|w| w[0].number() < w[1].number()));
        for &helper in Helper::ALL {
            assert_eq!(Helper::from_number(i32::try_from(helper.number()).unwrap()), Some(helper));
        }
        assert_eq!(Helper::from_number(0), None);
    }
}
