//! Makes a scenario that shows a difference smaller as long as it still shows it.

use super::lockstep::Lockstep;
use crate::engines::OpenError;
use crate::scenario::Scenario;

/// Tries at most: a shrink that takes longer than finding the difference helps nobody.
const TRIES: usize = 2000;

pub(super) fn shrink(scenario: Scenario, engines: &mut Lockstep) -> Result<Scenario, OpenError> {
    let mut best = scenario;
    let mut tries = TRIES;
    best = thin(best, engines, &mut tries, |scenario| &mut scenario.steps)?;
    best = thin(best, engines, &mut tries, |scenario| &mut scenario.writes)?;
    for index in 0..best.steps.len() {
        let mut smaller = best.clone();
        smaller.steps[index].writes.clear();
        smaller.steps[index].deletes.clear();
        if engines.differ(&smaller)? {
            best = smaller;
        }
    }
    Ok(best)
}

/// Leaves out pieces of a list, large ones first. Time does not shrink: a step that goes leaves its time to the next.
fn thin<T: Clone + Passing>(
    mut best: Scenario,
    engines: &mut Lockstep,
    tries: &mut usize,
    list: impl Fn(&mut Scenario) -> &mut Vec<T>,
) -> Result<Scenario, OpenError> {
    let mut size = list(&mut best).len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < list(&mut best).len() && *tries > 0 {
            *tries -= 1;
            let mut smaller = best.clone();
            let items = list(&mut smaller);
            let end = (at + size).min(items.len());
            let gone: Vec<T> = items.drain(at..end).collect();
            if let Some(next) = items.get_mut(at) {
                next.inherit(&gone);
            }
            if engines.differ(&smaller)? {
                best = smaller;
            } else {
                at += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    Ok(best)
}

/// What an item takes over from those that are left out before it.
trait Passing {
    fn inherit(&mut self, gone: &[Self])
    where
        Self: Sized;
}

impl Passing for crate::scenario::Step {
    fn inherit(&mut self, gone: &[Self]) {
        self.advance_ns += gone.iter().map(|step| step.advance_ns).sum::<u64>();
        // What user space did stays done.
        let mut writes: Vec<_> = gone.iter().flat_map(|step| step.writes.iter().cloned()).collect();
        writes.append(&mut self.writes);
        self.writes = writes;
        let mut deletes: Vec<_> = gone.iter().flat_map(|step| step.deletes.iter().cloned()).collect();
        deletes.append(&mut self.deletes);
        self.deletes = deletes;
    }
}

impl Passing for crate::scenario::Write {
    fn inherit(&mut self, _: &[Self]) {}
}
