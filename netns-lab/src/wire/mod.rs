//! Truth on the wire: what the kernel really sent, captured on the devices of a lab.

pub mod packet;
