//! What a lab found.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};

/// The checks of one lab, in order.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<(String, Option<String>)>,
    skips: BTreeSet<String>,
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

    /// Notes that something was not looked at: `skip: ID: reason`, as `ci/skips.toml` declares it.
    pub fn skip(&mut self, line: impl Into<String>) {
        self.skips.insert(line.into());
    }

    /// What was not looked at, each once.
    #[must_use]
    pub fn skips(&self) -> &BTreeSet<String> {
        &self.skips
    }

    /// Checks that held, and that did not.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let failed = self.checks.iter().filter(|(_, wrong)| wrong.is_some()).count();
        (self.checks.len() - failed, failed)
    }

    /// One line per check, and per skip.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (what, wrong) in &self.checks {
            let _ = match wrong {
                None => writeln!(text, "  ok     {what}"),
                Some(wrong) => writeln!(text, "  FAILED {what}: {wrong}"),
            };
        }
        for skip in &self.skips {
            let _ = writeln!(text, "  {skip}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_no_check_that_held() {
        let mut report = Report::default();
        report.skip("skip: lab-tools: no ping");
        report.skip("skip: lab-tools: no ping");
        assert_eq!(report.counts(), (0, 0));
        assert_eq!(report.text(), "  skip: lab-tools: no ping\n");
    }
}
