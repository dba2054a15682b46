//! The agent as a process, on nodes that are network namespaces, with pods and real connections. Needs root; otherwise
//! every test prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

mod attach;
mod cli;
mod failures;
mod heal;
mod kills;
mod lone;
mod privileges;
mod restart;
mod routing;
mod support;
