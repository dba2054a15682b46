//! Manifests: files, folders (all of their YAML and JSON, sorted), `-` for standard input.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use agent_core::{InputErrors, Model};

use super::Failure;
use crate::cluster::scenario::Config;
use crate::manifests;

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

/// The cluster that manifests describe. What was passed over is told on standard error.
///
/// # Errors
/// Everything that is wrong with them.
pub fn model(paths: &[PathBuf], config: &Config) -> Result<Model, Failure> {
    let manifests = manifests::read(&read(paths)?);
    if !manifests.passed.is_empty() {
        let _ = writeln!(std::io::stderr(), "note: {}", manifests.passed);
    }
    if !manifests.errors.is_empty() {
        return Err(Failure::Input(InputErrors(manifests.errors).to_string()));
    }
    Model::from_objects(manifests.objects, config.families()).map_err(|errors| Failure::Input(errors.to_string()))
}

/// The later version of a cluster: where nodes are the same in both, pods that stay keep the node and the addresses that
/// were filled in for them, so that what changes is only what the files change.
///
/// # Errors
/// Everything that is wrong with the files.
pub fn later(before: &Model, paths: &[PathBuf], config: &Config) -> Result<Model, Failure> {
    let after = model(paths, config)?;
    let place = |node: &agent_core::model::Node| (node.name.clone(), node.addresses.clone(), node.pod_cidrs.clone());
    if !before.nodes().iter().map(place).eq(after.nodes().iter().map(place)) {
        return Ok(after);
    }
    let kept = before.pods().values().map(|pod| (pod.name.clone(), pod.node.clone(), pod.addresses.clone()));
    let restored = Model::restored(after.objects().to_vec(), config.families(), kept);
    restored.map_err(|errors| Failure::Input(errors.to_string()))
}
