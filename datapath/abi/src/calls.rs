//! Programs: hooks, and slots of the call table.

macro_rules! hooks {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Where a packet is when a program sees it.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Hook { $($(#[$meta])* $name = $number,)* }
        impl Hook {
            /// Every hook.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
            /// Name of the hook and of its entry program.
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $text,)* } }
            /// From the number in an event.
            pub const fn from_number(number: u8) -> Option<Self> { match number { $($number => Some(Self::$name),)* _ => None } }
            /// From the name.
            pub fn from_name(name: &str) -> Option<Self> { Self::ALL.iter().copied().find(|hook| hook.name() == name) }
        }
    };
}

hooks! {
    /// Host side of a pod's veth, ingress: packets leaving the pod.
    FromContainer = 1, "from_container";
    /// Host side of a pod's veth, egress: packets entering the pod.
    ToContainer = 2, "to_container";
    /// Tunnel device, ingress.
    FromOverlay = 3, "from_overlay";
    /// Device towards the underlay, ingress.
    FromNetdev = 4, "from_netdev";
    /// Device towards the underlay, egress.
    ToNetdev = 5, "to_netdev";
    /// weir's host device, egress: packets of the node's own stack towards pods.
    FromHost = 6, "from_host";
}

/// Slots of the `calls` map: continuations of the entry programs. An entry program handles IPv4 itself.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallSlot {
    /// IPv6 of `from_container`.
    FromContainer6 = 1,
    /// IPv6 of `to_container`.
    ToContainer6 = 2,
    /// IPv6 of `from_overlay`.
    FromOverlay6 = 3,
    /// IPv6 of `from_netdev`.
    FromNetdev6 = 4,
    /// IPv6 of `to_netdev`.
    ToNetdev6 = 5,
    /// IPv6 of `from_host`.
    FromHost6 = 6,
    /// ARP from a pod.
    Arp = 7,
    /// Neighbour discovery and other on-link ICMPv6 from a pod.
    Neighbour = 8,
}

impl CallSlot {
    /// Every slot with the name of the program it holds (at most 15 characters, as the kernel keeps no more).
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::FromContainer6, "from_container6"),
        (Self::ToContainer6, "to_container6"),
        (Self::FromOverlay6, "from_overlay6"),
        (Self::FromNetdev6, "from_netdev6"),
        (Self::ToNetdev6, "to_netdev6"),
        (Self::FromHost6, "from_host6"),
        (Self::Arp, "arp"),
        (Self::Neighbour, "neighbour"),
    ];
    /// Entries of the `calls` map.
    pub const COUNT: u32 = 16;
}
