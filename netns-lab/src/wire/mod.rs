//! Truth on the wire: what the kernel really sent, captured on the devices of a lab.
//!
//! Judges of captured frames ([`tunnel`], …) are plain functions of frames, so that tests show for each that it fails when
//! it should.

pub mod cluster;
pub mod decoded;
#[expect(unsafe_code, reason = "an ioctl that no library has")]
mod ethtool;
mod look;
pub mod neighbours;
pub mod offloads;
pub mod packet;
pub mod path_mtu;
pub mod received;
pub mod simulated;
pub mod sizes;
pub mod taps;
pub mod traffic;
pub mod tunnel;

pub use look::{look, over_ipv6};
