//! The agent of one node: cluster objects in, kernel maps, devices and programs out.
//!
//! | module | |
//! |---|---|
//! | [`settings`] | the settings file |
//! | [`source`] | objects as files in a folder |
//! | [`state`] | what survives a restart |
//! | [`agent`], [`endpoint`] | everything as the objects say |
//! | [`network`], [`net`], [`sysctl`] | devices, addresses, routes, kernel settings |
//! | [`datapath`] | maps and programs, pinned |
//! | [`monitor`] | events with names |
//! | [`view`], [`server`] | answers on the socket |
//! | [`cleanup`] | removes everything |
//! | [`cli`] | the command line |
//!
//! One thread does everything in turn; it is never asked anything that takes long. Capabilities: `CAP_BPF` and
//! `CAP_NET_ADMIN` (maps, programs, devices), `CAP_SYS_ADMIN` (entering pods' network namespaces, mounting the bpf file
//! system).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
pub mod cleanup;
pub mod cli;
pub mod datapath;
pub mod endpoint;
pub mod monitor;
pub mod net;
pub mod network;
mod poll;
pub mod server;
pub mod settings;
pub mod source;
pub mod state;
pub mod sysctl;
pub mod view;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for, or an object, is wrong.
    #[error("{message}")]
    Input {
        /// What is wrong.
        message: String,
    },
    /// Devices, addresses, routes.
    #[error(transparent)]
    Net(#[from] net::NetError),
    /// Maps and programs.
    #[error(transparent)]
    Datapath(#[from] datapath::DatapathError),
    /// What survives a restart.
    #[error(transparent)]
    State(#[from] state::StateError),
    /// Identities are used up.
    #[error(transparent)]
    Identity(#[from] agent_core::IdentityError),
    /// Endpoints do not fit the objects.
    #[error(transparent)]
    Desired(Box<agent_core::DesiredError>),
    /// Maps could not be made what they should be.
    #[error(transparent)]
    Reconcile(#[from] agent_core::ReconcileError),
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] datapath_maps::MapError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] datapath_kernel::KernelError),
    /// Files, settings of the kernel.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<agent_core::DesiredError> for Failure {
    fn from(error: agent_core::DesiredError) -> Self {
        Self::Desired(Box::new(error))
    }
}

impl Failure {
    /// What was asked for is wrong.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input { message: message.into() }
    }
}
