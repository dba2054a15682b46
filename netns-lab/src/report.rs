//! What a lab found.

use std::fmt::{Debug, Write as _};

/// The checks of one lab, in order.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<(String, Option<String>)>,
}

impl Report {
    /// Notes that `what` should be, and is not if there is a reason.
    pub fn check(&mut self, what: impl Into<String>, wrong: Option<String>) {
        self.checks.push((what.into(), wrong));
    }

    /// Notes that `what` should be `wanted`.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: impl Into<String>, got: &T, wanted: &T) {
        let wrong = (got != wanted).then(|| format!("{got:?} instead of {wanted:?}"));
        self.check(what, wrong);
    }

    /// Every check: what should be, and what is wrong with it, if anything.
    #[must_use]
    pub fn checks(&self) -> &[(String, Option<String>)] {
        &self.checks
    }

    /// Checks that held, and that did not.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let failed = self.checks.iter().filter(|(_, wrong)| wrong.is_some()).count();
        (self.checks.len() - failed, failed)
    }

    /// One line per check.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (what, wrong) in &self.checks {
            let _ = match wrong {
                None => writeln!(text, "  ok     {what}"),
                Some(wrong) => writeln!(text, "  FAILED {what}: {wrong}"),
            };
        }
        text
    }
}
