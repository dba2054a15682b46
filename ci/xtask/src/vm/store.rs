//! Packages on this machine: fetched once, checked against the lock, unpacked below the cache folder
//! (`$XDG_CACHE_HOME/weir`, else `~/.cache/weir`). What lies there under its final name is complete: everything is made
//! beside it and renamed, so that runs beside each other do no harm.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::catalogue::{Catalogue, Lock, Package};

/// Part of the key of unpacked trees: raised when unpacking changes.
const LAYOUT: u32 = 1;

/// The cache.
pub struct Store {
    folder: PathBuf,
    mirrors: Vec<String>,
    lock: Lock,
}

impl Store {
    /// Opens the cache, and makes it if need be.
    pub fn open(catalogue: &Catalogue, lock: Lock) -> Result<Self> {
        let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
            (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
            (_, Some(home)) => PathBuf::from(home).join(".cache"),
            (_, None) => bail!("neither XDG_CACHE_HOME nor HOME is set"),
        };
        let folder = base.join("weir/vm");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { folder, mirrors: catalogue.mirrors.clone(), lock })
    }

    /// Path of a small file of the cache's own.
    pub fn note(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The unpacked tree of a set of the lock; `finish` runs once, on the fresh tree.
    pub fn tree(&self, set: &str, finish: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
        let packages = self.lock.get(set).with_context(|| format!("no packages are locked for `{set}`"))?;
        let mut key = Sha256::new();
        for package in packages {
            key.update(&package.sha256);
        }
        key.update(LAYOUT.to_le_bytes());
        let tree = self.folder.join(format!("{set}-{}", &hex(&key.finalize())[..16]));
        if tree.is_dir() {
            return Ok(tree);
        }
        eprintln!("vm: fetching {set} ({} packages)", packages.len());
        let archives = self.fetch(packages)?;
        let fresh = tempfile::tempdir_in(&self.folder).context("making a folder in the cache")?;
        eprintln!("vm: unpacking {set}");
        for archive in &archives {
            run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(fresh.path()))?;
        }
        finish(fresh.path()).with_context(|| format!("preparing {set}"))?;
        // Whoever fills the cache as root is not the only one to read it.
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755))?;
        let fresh = fresh.keep();
        if let Err(error) = fs::rename(&fresh, &tree) {
            fs::remove_dir_all(&fresh)?;
            // Somebody else was faster.
            ensure!(tree.is_dir(), "naming {}: {error}", tree.display());
        }
        for archive in archives {
            // Only a copy of what is unpacked now; another run may have removed it already.
            let _ = fs::remove_file(archive);
        }
        Ok(tree)
    }

    fn fetch(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for package in packages {
            let path = self.folder.join(format!("{}-{}", &package.sha256[..16], package.file()));
            if !path.is_file() {
                self.download(package, &path)?;
            }
            paths.push(path);
        }
        Ok(paths)
    }

    fn download(&self, package: &Package, path: &Path) -> Result<()> {
        let fresh = tempfile::tempdir_in(&self.folder).context("making a folder in the cache")?;
        let part = fresh.path().join("part");
        let mut failed = Vec::new();
        for mirror in &self.mirrors {
            let address = format!("{}/{}", mirror.replace("{archive}", &package.archive), package.path);
            match transfer(&address, &part).and_then(|()| check(&part, &package.sha256)) {
                Ok(()) => return fs::rename(&part, path).with_context(|| format!("naming {}", path.display())),
                Err(error) => failed.push(format!("{address}: {error:#}")),
            }
        }
        bail!("could not fetch {}:\n  {}", package.file(), failed.join("\n  "))
    }
}

/// With apt's own downloader where there is one, as it knows the machine's proxy; else with curl.
fn transfer(address: &str, to: &Path) -> Result<()> {
    let apt = Path::new("/usr/lib/apt/apt-helper");
    if apt.is_file() {
        return run(Command::new(apt).args(["-qq", "download-file", address]).arg(to));
    }
    run(Command::new("curl").args(["-fsSL", "--retry", "3", "-o"]).arg(to).arg(address))
}

fn check(path: &Path, sha256: &str) -> Result<()> {
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let found = hex(&hash.finalize());
    ensure!(found == sha256, "its SHA-256 is {found}, not {sha256}");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a command that says nothing unless it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}: {}", command.get_program(), output.status, said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_the_locked_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check(&path, abc).unwrap();
        fs::write(&path, "abd").unwrap();
        assert!(check(&path, abc).is_err());
    }
}
