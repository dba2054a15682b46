//! What can go wrong between us and the kernel. Every variant names the object and the step.

use datapath_maps::{Errno, MapError};

/// An error of this crate. Error numbers are those of errno.h.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not Linux.
    #[error("{what} needs Linux")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// A system call on a map.
    #[error("map `{map}`: {step}: {}", describe(*errno))]
    Map {
        /// Name of the map.
        map: String,
        /// What was tried.
        step: &'static str,
        /// Error number.
        errno: i32,
    },
    /// A definition that no kernel accepts.
    #[error(transparent)]
    Spec(#[from] MapError),
    /// Key or value bytes do not fit.
    #[error("map `{map}`: {part} of {given} bytes, {wanted} are needed")]
    Size {
        /// Name of the map.
        map: String,
        /// "key" or "value".
        part: &'static str,
        /// Bytes given.
        given: usize,
        /// Bytes needed.
        wanted: usize,
    },
    /// A pinned map is not what this build expects.
    #[error("pinned map `{map}` has {field} {found}, this build needs {expected}")]
    Pinned {
        /// Name of the map.
        map: String,
        /// What differs.
        field: &'static str,
        /// What the pinned map has.
        found: u32,
        /// What this build needs.
        expected: u32,
    },
    /// The object file cannot be read or linked.
    #[error("object: {step}: {reason}")]
    Object {
        /// What was tried.
        step: &'static str,
        /// What the object library says.
        reason: String,
    },
    /// The object uses a kind of map that this crate does not know.
    #[error("object: map `{map}` is of kind {kind}, which is not supported")]
    MapKind {
        /// Name of the map.
        map: String,
        /// The kernel's number.
        kind: u32,
    },
    /// There is no such map.
    #[error("there is no map `{map}`")]
    NoMap {
        /// The name asked for.
        map: String,
    },
    /// There is no such program.
    #[error("there is no program `{program}`")]
    NoProgram {
        /// The name asked for.
        program: String,
    },
    /// The verifier refused a program.
    #[error("program `{program}` refused: {}\n{log}", describe(*errno))]
    Verifier {
        /// Name of the program.
        program: String,
        /// Error number.
        errno: i32,
        /// The end of the verifier's log.
        log: String,
    },
    /// A test run failed before or after the program ran.
    #[error("program `{program}`: test run: {}", describe(*errno))]
    TestRun {
        /// Name of the program.
        program: String,
        /// Error number.
        errno: i32,
    },
    /// The program is not of a kind that this crate loads.
    #[error("program `{program}` is in section kind {section}; only classifiers are loaded")]
    ProgramKind {
        /// Name of the program.
        program: String,
        /// Section kind.
        section: String,
    },
    /// Another system call.
    #[error("{step}: {}", describe(*errno))]
    System {
        /// What was tried.
        step: &'static str,
        /// Error number.
        errno: i32,
    },
}

impl KernelError {
    /// The error number, if a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Map { errno, .. }
            | Self::Verifier { errno, .. }
            | Self::TestRun { errno, .. }
            | Self::System { errno, .. } => Some(*errno),
            Self::Unsupported { .. }
            | Self::Spec(_)
            | Self::Size { .. }
            | Self::Pinned { .. }
            | Self::Object { .. }
            | Self::MapKind { .. }
            | Self::NoMap { .. }
            | Self::NoProgram { .. }
            | Self::ProgramKind { .. } => None,
        }
    }
}

fn describe(errno: i32) -> String {
    match Errno::from_number(errno) {
        Some(known) => format!("{known} ({errno})"),
        None => format!("{}", std::io::Error::from_raw_os_error(errno)),
    }
}
