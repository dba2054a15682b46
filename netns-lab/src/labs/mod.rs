//! The labs.

use anyhow::Result;

use crate::report::Report;
use crate::world::World;

mod one_node;
mod two_nodes;

/// One lab.
pub struct Lab {
    /// Name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Kubernetes objects it begins with.
    pub cluster: &'static [&'static str],
    /// Looks whether all is as it should be.
    pub look: fn(&mut World, &mut Report) -> Result<()>,
}

impl Lab {
    /// Builds it.
    ///
    /// # Errors
    /// Something is missing here; the error says what.
    pub fn up(&self) -> Result<World> {
        World::new(&self.cluster.concat())
    }

    /// Builds it, looks, and takes it down.
    #[must_use]
    pub fn run(&self) -> Report {
        let mut report = Report::default();
        let ended = self.up().and_then(|mut world| (self.look)(&mut world, &mut report));
        if let Err(error) = ended {
            report.check("the lab ends", Some(format!("{error:#}")));
        }
        report
    }
}

/// Every lab.
pub const ALL: &[Lab] = &[
    Lab {
        name: "one-node",
        about: "pods of one node: delivery, policy, updates of policy, source check, the node itself",
        cluster: &[one_node::CLUSTER, one_node::FRIENDS_ONLY],
        look: one_node::look,
    },
    Lab {
        name: "two-nodes",
        about: "pods of two nodes over VXLAN: delivery, identities, policy, bulk data",
        cluster: &[two_nodes::CLUSTER],
        look: two_nodes::look,
    },
];
