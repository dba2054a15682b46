//! The labs.

use anyhow::Result;

use crate::report::Report;

mod one_node;
mod two_nodes;

/// One lab.
pub struct Lab {
    /// Name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Builds it, looks, and takes it down.
    pub run: fn(&mut Report) -> Result<()>,
}

/// Every lab.
pub const ALL: &[Lab] = &[
    Lab {
        name: "one-node",
        about: "pods of one node: delivery, policy, updates of policy, source check, the node itself",
        run: one_node::run,
    },
    Lab {
        name: "two-nodes",
        about: "pods of two nodes over VXLAN: delivery, identities, policy, bulk data",
        run: two_nodes::run,
    },
];
