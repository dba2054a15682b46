//! The agent as a process, on nodes that are network namespaces, with pods and real connections. Needs root; otherwise
//! every test prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

mod attach;
mod heal;
mod lone;
mod routing;
mod support;
