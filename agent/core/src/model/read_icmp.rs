//! Types of ICMP by number or name (IANA's registries of ICMP and ICMPv6 types, written as Cilium writes them).

use crate::input::{Field, Report};

/// IANA protocol numbers.
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

const NAMES4: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const NAMES6: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// Reads `{family: IPv4, type: 8}`: protocol and type.
pub(super) fn icmp_type(item: &Field<'_>, report: &mut Report) -> Option<(u8, u16)> {
    let mut fields = item.object(report)?;
    let family = fields.get("family");
    let kind = fields.require("type", report);
    fields.finish(report);
    let (protocol, names) = match family.as_ref().map(|field| field.string(report)) {
        None | Some(Some("IPv4")) => (ICMP, NAMES4),
        Some(Some("IPv6")) => (ICMP6, NAMES6),
        Some(Some(_)) => {
            family?.invalid(report, "must be IPv4 or IPv6");
            return None;
        }
        Some(None) => return None,
    };
    let kind = kind?;
    if kind.is_plain_number() {
        let number = kind.integer(report, 0..=255)?;
        return u16::try_from(number).ok().map(|number| (protocol, number));
    }
    let text = kind.node.text()?;
    let named = names.iter().find(|(name, _)| *name == text).map(|(_, number)| u16::from(*number));
    let number = named.or_else(|| text.parse::<u8>().ok().map(u16::from));
    if number.is_none() {
        let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        kind.invalid(report, format!("must be a number from 0 to 255, or one of {}", known.join(", ")));
    }
    number.map(|number| (protocol, number))
}
