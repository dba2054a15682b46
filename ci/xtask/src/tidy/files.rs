//! The files that the repository holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// One file of the repository.
pub struct File {
    /// Path from the workspace, with slashes.
    pub name: String,
    /// Content.
    pub bytes: Vec<u8>,
}

impl File {
    /// Content as text; binary files have none.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }

    /// Whether it is Rust source.
    pub fn is_rust(&self) -> bool {
        self.name.ends_with(".rs")
    }

    /// Whether it is only compiled into tests, benchmarks or examples.
    pub fn is_test(&self) -> bool {
        self.name.split('/').any(|part| matches!(part, "tests" | "benches" | "examples" | "tests.rs"))
    }

    /// Its lines of code with their numbers: without comments and what follows `//`, strings left as they are.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text().unwrap_or_default().lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }
}

/// Everything git knows or would add; without git, everything but build output. Sorted by name.
pub fn all(root: &Path) -> Result<Vec<File>> {
    let mut names = match from_git(root) {
        Some(names) => names,
        None => {
            let mut names = Vec::new();
            walk(root, root, &mut names)?;
            names
        }
    };
    names.sort();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        let path = root.join(&name);
        // A file that git still lists may be gone from the working tree.
        if path.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push(File { name, bytes });
        }
    }
    Ok(files)
}

fn from_git(root: &Path) -> Option<Vec<String>> {
    let listing = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .ok()?;
    if !listing.status.success() {
        return None;
    }
    let text = String::from_utf8(listing.stdout).ok()?;
    Some(text.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn walk(root: &Path, folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                walk(root, &path, names)?;
            }
        } else if let Ok(relative) = path.strip_prefix(root) {
            names.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}
