//! Benchmarks. The paths that are measured are declared once, in [`paths`]; [`counts`] counts what they execute,
//! exactly, in the checked engine, and [`kernel`] times them with the kernel's test run.
#![forbid(unsafe_code)]

pub mod counts;
pub mod kernel;
pub mod paths;
