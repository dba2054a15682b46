//! Manifests: files, folders (all of their YAML and JSON, sorted), `-` for standard input.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use agent_core::{Model, Settings};

use super::Failure;

/// Endings of files that are read in folders.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Reads all files of the arguments, in order.
///
/// # Errors
/// What cannot be read; a folder without manifests.
pub fn read(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::Input(format!("stdin: {error}")))?;
            files.push(("stdin".to_owned(), text));
            continue;
        }
        let found = crate::cluster::scenario::manifest_files(path, &ENDINGS)
            .map_err(|(path, error)| Failure::Input(format!("{}: {error}", path.display())))?;
        if found.is_empty() {
            return Err(Failure::Input(format!("{}: no .yaml, .yml or .json file in this folder", path.display())));
        }
        for file in found {
            files.push((shown(&file), text(&file)?));
        }
    }
    Ok(files)
}

/// A path as messages name it.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))
}

/// The cluster that manifests describe.
///
/// # Errors
/// Everything that is wrong with them.
pub fn model(paths: &[PathBuf]) -> Result<Model, Failure> {
    let files = read(paths)?;
    Model::parse(&files, Settings::default()).map_err(|errors| Failure::Input(errors.to_string()))
}
