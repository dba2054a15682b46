//! Packets to the underlay: counted.

use super::Outcome;
use crate::verdict::Verdict;

/// The whole path, for every EtherType.
#[inline(always)]
pub const fn run() -> Outcome {
    Ok(Verdict::PASS)
}
