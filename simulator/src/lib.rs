//! weir-sim: many nodes, real bytecode, no root
#![forbid(unsafe_code)]

pub mod cluster;
pub mod commands;
pub mod engines;
pub mod fuzz;
pub mod lint;
pub mod manifests;
pub mod packet;
pub mod report;
pub mod scenario;
pub mod settings;
