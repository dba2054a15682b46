//! placeholder
use crate::loader::{Program, Rodata};
#[derive(Debug, thiserror::Error)]
pub enum LowerError {}
#[derive(Debug)]
pub struct Lowered;
impl Lowered {
    pub fn new(_: &[Program], _: &[Rodata]) -> Result<Self, LowerError> {
        Ok(Self)
    }
}
