//! The control plane of a node as a pure function: objects → [`model`] → [`policy`] and identities → [`desired`] →
//! plan → maps.
//!
//! Invariants: no clock, no I/O, no threads; the same input gives the same bytes, in whatever order it arrived; maps are
//! written only through a [`Plan`]. Input that is wrong or not supported is an error with file, line and field, never
//! ignored.
//!
//! ```
//! use agent_core::{Compiled, IdentityAllocator, Limits, LocalEndpoint, Model, Settings, reconcile};
//! use agent_core::model::Name;
//! use datapath_maps::{MapSpec, MemoryMaps};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pod = "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {nodeName: node-1, containers: [{name: c}]}}";
//! let files = [("pod.yaml".to_owned(), pod.to_owned())];
//! let model = Model::parse(&files, Settings::default())?; // all errors at once
//! let mut identities = IdentityAllocator::default(); // keeps numbers across updates
//! let compiled = Compiled::new(&model, &mut identities)?;
//! let pod = Name::new("default", "web");
//! let local = LocalEndpoint { pod, id: 1, ifindex: 7, mac: [2, 0, 0, 0, 0, 1].into() };
//! let desired = compiled.desired("node-1", &[local])?;
//! let mut maps = MemoryMaps::new(agent_core::desired::OWNED.map(MapSpec::of), 1)?;
//! let plan = reconcile(&desired, &Limits::default(), &mut maps)?;
//! assert!(!plan.is_empty());
//! assert!(reconcile(&desired, &Limits::default(), &mut maps)?.is_empty());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod desired;
pub mod identity;
pub mod input;
pub mod labels;
pub mod map;
pub mod model;
pub mod policy;
pub mod prefix;
pub mod yaml;

pub use desired::{
    Desired, DesiredError, Limits, LocalEndpoint, NodeMaps, Plan, ReconcileError, Snapshot, reconcile, reconcile_known,
};
pub use identity::{IdentityAllocator, IdentityError, Owner};
pub use input::{InputError, InputErrors, Problem};
pub use labels::{Labels, Selector};
pub use map::Map;
pub use model::{Model, Settings};
pub use policy::{
    Attempt, Changes, Compiled, Direction, Flow, Part, PolicyRef, RuleId, RuleInfo, RuleOrigin, RuleTable,
};
pub use prefix::Prefix;
pub use yaml::Position;
