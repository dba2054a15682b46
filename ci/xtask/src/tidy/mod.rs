//! Rules about the sources themselves: who may know whom (`ci/deps.toml`), lints that every crate inherits, files of a
//! readable size, and the invariants of ARCHITECTURE.md that a look at the text can hold up.
//!
//! `cargo xtask tidy` prints what is wrong; the test below fails on it, so `cargo test` does too.

mod crates;
mod files;
mod sources;

use std::path::Path;

use anyhow::{Result, ensure};

use files::File;

/// What the checks found.
#[derive(Default)]
struct Findings {
    wrong: Vec<String>,
    notes: Vec<String>,
}

impl Findings {
    fn wrong(&mut self, text: String) {
        self.wrong.push(text);
    }
}

/// Checks the workspace at `root`; an error if anything is wrong.
pub fn run(root: &Path) -> Result<()> {
    let files: Vec<File> = files::all(root)?;
    let mut findings = Findings::default();
    crates::check(&files, &mut findings)?;
    sources::check(&files, &mut findings);
    for note in &findings.notes {
        println!("note: {note}");
    }
    for wrong in &findings.wrong {
        println!("wrong: {wrong}");
    }
    ensure!(findings.wrong.is_empty(), "tidy: {} wrong", findings.wrong.len());
    println!("tidy: {} files, nothing wrong", files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        super::run(&crate::workspace().expect("the workspace")).expect("see `wrong:` above");
    }
}
