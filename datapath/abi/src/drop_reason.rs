//! Why a packet was dropped. Numbers are Cilium's, so that its dashboards and tools read weir's counters.

macro_rules! drop_reasons {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a packet was dropped: exactly the reasons that the object can produce.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$meta])* $name = $number,)* }

        impl DropReason {
            /// Every reason, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Name as scenarios and `--json` write it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it means, for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// From the number in an event or a counter.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

drop_reasons! {
    /// A pod sent with an address that is not its own.
    InvalidSourceIp = 132, "source address does not belong to the sending pod";
    /// No rule of a policy that isolates the endpoint matched.
    PolicyNoMatch = 133, "no policy rule allows it (default deny)";
    /// Truncated or contradictory headers.
    InvalidPacket = 134, "malformed packet";
    /// The L4 header is cut off.
    CtInvalidHeader = 135, "truncated L4 header";
    /// An L4 protocol that connection tracking does not know.
    CtUnknownProtocol = 137, "L4 protocol not supported";
    /// Neither IPv4, IPv6 nor ARP.
    UnknownL3 = 139, "ethertype not supported";
    /// A program of the call table is missing.
    MissedTailCall = 140, "program missing in the call table";
    /// The packet or its metadata could not be written.
    WriteError = 141, "packet could not be written";
    /// A packet from the overlay device without tunnel metadata.
    NoTunnelKey = 147, "no tunnel metadata";
    /// A neighbour that nobody answers for: an address probe, or the pod's own address.
    UnknownTarget = 150, "no neighbour to answer for";
    /// An address that no endpoint and no node here owns.
    Unroutable = 151, "destination is not on this node";
    /// The flow could not be remembered.
    CtCreateFailed = 155, "connection tracking table refused the flow";
    /// More or longer IPv6 extension headers than are followed.
    InvalidExtensionHeader = 156, "IPv6 extension headers not supported";
    /// A remote pod whose node is not known.
    NoTunnelEndpoint = 160, "no tunnel endpoint for the destination";
    /// The settings were never written.
    NoConfig = 165, "datapath is not configured";
    /// VXLAN or Geneve from a pod towards a node.
    EncapProhibited = 170, "a pod may not send tunnel traffic to nodes";
    /// An identity that may not come over the wire.
    InvalidIdentity = 171, "identity not allowed on the wire";
    /// Tunnel traffic from an address that is no node's.
    UnknownSender = 172, "tunnel sender is not a node";
    /// A fragment whose first fragment was not seen.
    FragmentNotFound = 175, "first fragment not seen";
    /// ICMPv6 that only routers may send.
    ForbiddenIcmp6 = 176, "ICMPv6 type not allowed from a pod";
    /// A rule sends it to a proxy, and there is none.
    ProxyLookupFailed = 178, "a policy rule sends it to a proxy, and there is none";
    /// A deny rule matched.
    PolicyDeny = 181, "a policy rule denies it";
    /// A VNI that carries no identity.
    InvalidVni = 183, "VNI carries no identity";
    /// The hop limit is used up.
    TtlExceeded = 196, "TTL exceeded";
    /// A Geneve control message, or one with an option that must be understood. The number is weir's own.
    UnsupportedGeneve = 220, "Geneve control message, or an option that must be understood";
}
