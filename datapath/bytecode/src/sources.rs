//! Which sources make the object, and their hash.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Folders and files, relative to the workspace, whose content decides the object's bytes.
const SOURCES: &[&str] = &[
    "datapath/abi/Cargo.toml",
    "datapath/abi/src",
    "datapath/core/Cargo.toml",
    "datapath/core/src",
    "datapath/ebpf/Cargo.toml",
    "datapath/ebpf/Cargo.lock",
    "datapath/ebpf/src",
    "rust-toolchain.toml",
];

/// Hash (SHA-256, hexadecimal) of the names and bytes of all sources under the workspace `root`.
///
/// # Errors
/// A source cannot be read.
pub fn hash(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let bytes = fs::read(&file)?;
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(bytes.len().to_le_bytes());
        digest.update(&bytes);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
