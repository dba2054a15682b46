//! What becomes of a packet.

use datapath_abi::CallSlot;

/// What becomes of a packet that is not dropped.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to where it was going: the node's stack, or the device.
    Pass,
    /// Into the pod behind `target`, the host side of its veth.
    Deliver,
    /// To `target`, the host side of a pod's veth, where `to_container` asks the pod's policy.
    Forward,
    /// Out of the tunnel device, with the metadata of [`crate::Packet::set_tunnel_key`].
    Overlay,
    /// Back out of the interface it came from.
    Reflect,
    /// The program in slot `target` of the call table goes on.
    Call,
}

/// An action and what it needs. Not an enum with payloads: the compiler moves the unused part of such a value about
/// undefined, and the verifier refuses to read it.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the packet.
    pub action: Action,
    /// Interface index or slot; 0 where the action needs none.
    pub target: u32,
}

impl Verdict {
    /// See [`Action::Pass`].
    pub const PASS: Self = Self { action: Action::Pass, target: 0 };
    /// See [`Action::Overlay`].
    pub const OVERLAY: Self = Self { action: Action::Overlay, target: 0 };
    /// See [`Action::Reflect`].
    pub const REFLECT: Self = Self { action: Action::Reflect, target: 0 };

    /// See [`Action::Deliver`].
    #[inline(always)]
    pub const fn deliver(ifindex: u32) -> Self {
        Self { action: Action::Deliver, target: ifindex }
    }

    /// See [`Action::Forward`].
    #[inline(always)]
    pub const fn forward(ifindex: u32) -> Self {
        Self { action: Action::Forward, target: ifindex }
    }

    /// See [`Action::Call`].
    #[inline(always)]
    pub const fn call(slot: CallSlot) -> Self {
        Self { action: Action::Call, target: slot as u32 }
    }
}
