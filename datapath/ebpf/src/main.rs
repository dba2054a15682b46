//! The eBPF object: hooks, maps and helpers. It moves bytes, calls `datapath-core`, and turns verdicts into codes;
//! it compares no packet content.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod skb;
mod tables;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath_abi::{Direction, Hook};
use datapath_core::pipeline::{
    self, from_container as leaving, from_host as host, from_netdev, from_overlay as overlay, to_container as entering,
    to_netdev as network,
};
use datapath_core::{Facts, Family, Packet, V4, V6, reply};

use crate::skb::{SHOT, Skb};
use crate::tables::Maps;

/// One packet at one hook, from its first look to its code.
#[inline(always)]
fn run<F: Family>(
    skb: *mut __sk_buff,
    hook: Hook,
    direction: Direction,
    path: impl FnOnce(&mut Skb, &Maps, &mut Facts<F>) -> pipeline::Outcome,
) -> i32 {
    let mut packet = Skb::new(skb);
    let tables = Maps::new();
    let mut facts = Facts::new(hook, direction, packet.ifindex(), packet.len());
    let outcome = path(&mut packet, &tables, &mut facts).and_then(|verdict| packet.act(&tables, verdict));
    pipeline::finish(&tables, &facts, outcome).unwrap_or(SHOT)
}

macro_rules! programs {
    ($($name:ident, $family:ty, $hook:ident, $direction:ident, $path:expr;)*) => {
        $(
            #[classifier]
            pub fn $name(context: TcContext) -> i32 {
                run::<$family>(context.skb.skb, Hook::$hook, Direction::$direction, $path)
            }
        )*
    };
}

programs! {
    from_container, V4, FromContainer, Egress, |packet, tables, facts| leaving::entry(packet, tables, facts);
    from_container6, V6, FromContainer, Egress, |packet, tables, facts| leaving::run(packet, tables, facts);
    arp, V4, FromContainer, Egress, |packet, tables, facts| reply::arp(packet, tables, facts);
    neighbour, V6, FromContainer, Egress, |packet, tables, facts| reply::on_link(packet, tables, facts);
    to_container, V4, ToContainer, Ingress, |packet, tables, facts| entering::entry(packet, tables, facts);
    to_container6, V6, ToContainer, Ingress, |packet, tables, facts| entering::run(packet, tables, facts);
    from_overlay, V4, FromOverlay, Ingress, |packet, tables, facts| overlay::entry(packet, tables, facts);
    from_overlay6, V6, FromOverlay, Ingress, |packet, tables, facts| overlay::run(packet, tables, facts);
    from_netdev, V4, FromNetdev, Ingress, |packet, tables, facts| from_netdev::entry(packet, tables, facts);
    from_netdev6, V6, FromNetdev, Ingress, |packet, tables, facts| from_netdev::run(packet, tables, facts);
    to_netdev, V4, ToNetdev, Egress, |packet, tables, facts| network::entry(packet, tables, facts);
    to_netdev6, V6, ToNetdev, Egress, |packet, tables, facts| network::run(packet, tables, facts);
    from_host, V4, FromHost, Egress, |packet, tables, facts| host::entry(packet, tables, facts);
    from_host6, V6, FromHost, Egress, |packet, tables, facts| host::run(packet, tables, facts);
}

/// Never reached: the object has no panicking path, and a test of the linked object would find one.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that weir calls need a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
