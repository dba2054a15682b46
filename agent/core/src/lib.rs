//! The control plane of a node as a pure function: objects → [`model`] → [`policy`] and identities → [`desired`] →
//! plan → maps.
//!
//! Invariants: no clock, no I/O, no threads; the same input gives the same bytes, in whatever order it arrived; maps are
//! written only through a [`Plan`]. Input that is wrong or not supported is an error with file, line and field, never
//! ignored.
//!
//! ```text
//! let mut model = Model::parse(&files, Settings::default())?;     // all errors at once
//! let mut identities = IdentityAllocator::default();              // keeps numbers across updates
//! let compiled = Compiled::new(&model, &mut identities)?;
//! let desired = compiled.desired("node-1", &local_endpoints)?;
//! reconcile(&desired, &Limits::default(), &mut maps)?;
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod desired;
pub mod identity;
pub mod input;
pub mod labels;
pub mod model;
pub mod policy;
pub mod prefix;
pub mod yaml;

pub use desired::{Desired, DesiredError, Limits, LocalEndpoint, Plan, ReconcileError, Snapshot, reconcile};
pub use identity::{IdentityAllocator, IdentityError, Owner};
pub use input::{InputError, InputErrors, Problem};
pub use labels::{Labels, Selector};
pub use model::{Model, Settings};
pub use policy::{Attempt, Compiled, Direction, Flow, Part, PolicyRef, RuleId, RuleInfo, RuleOrigin, RuleTable};
pub use prefix::Prefix;
pub use yaml::Position;
