//! The `metrics` map: a per-CPU array of packets and bytes, by direction and reason.

use crate::shared;

/// Reason of a packet that was forwarded; numbers from 130 up are drop reasons.
pub const FORWARDED: u8 = 0;

/// Reason of an event that found no room in the ring buffer.
pub const EVENT_LOST: u8 = 1;

/// Entries of the map.
pub const COUNT: u32 = 1024;

/// Which way a counted packet went, seen from the endpoints of this node.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards an endpoint.
    Ingress = 1,
    /// From an endpoint.
    Egress = 2,
}

/// Index of a counter: `direction << 8 | reason`.
#[inline(always)]
pub const fn metrics_index(direction: Direction, reason: u8) -> u32 {
    (direction as u32) << 8 | reason as u32
}

shared! {
    /// Value of `metrics`, one per CPU.
    pub struct MetricsEntry (16) {
        /// Packets.
        pub packets: u64,
        /// Bytes of their frames.
        pub bytes: u64,
    }
}
