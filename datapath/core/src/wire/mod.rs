//! Headers as they are on the wire, one file per protocol: a struct for fixed-size loads, and its numbers.

pub mod arp;
pub mod ethernet;
pub mod geneve;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod l4;

/// Declares a header: bytes in network order, no padding, size checked.
macro_rules! header {
    ($(#[$meta:meta])* pub struct $name:ident ($size:literal, align $align:literal) { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C, align($align))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}
pub(crate) use header;
