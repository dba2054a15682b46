//! What there is: `ci/kernels/kernels.toml`, and `ci/kernels/packages.lock` with the exact files. The lock is written by
//! apt in a tree of its own, which checks the archive's signatures; afterwards only the SHA-256 in it are trusted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

const KERNELS: &str = "ci/kernels/kernels.toml";
const LOCK: &str = "ci/kernels/packages.lock";

/// `kernels.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Bases of addresses, with `{archive}` in them.
    pub mirrors: Vec<String>,
    /// By the name that `--kernel` takes.
    pub kernels: BTreeMap<String, Kernel>,
    tools: BTreeMap<String, Tool>,
}

/// A kernel.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    packages: Vec<String>,
    suites: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    packages: Vec<String>,
    #[serde(default)]
    depends: bool,
    suites: Vec<String>,
}

/// One package of the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// SHA-256, in lower-case hexadecimal.
    pub sha256: String,
    /// `debian` or `debian-security`.
    pub archive: String,
    /// Path below the archive, as in an address.
    pub path: String,
}

impl Package {
    /// Name of the file.
    pub fn file(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// Packages of each set: a kernel's name, or a tool's.
pub type Lock = BTreeMap<String, Vec<Package>>;

impl Catalogue {
    /// Reads `kernels.toml`.
    pub fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(KERNELS)).with_context(|| format!("reading {KERNELS}"))?;
        let mut catalogue: Self = toml::from_str(&text).context(KERNELS)?;
        if let Ok(mirror) = std::env::var("WEIR_DEBIAN_MIRROR") {
            catalogue.mirrors.insert(0, mirror);
        }
        Ok(catalogue)
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Result<&Kernel> {
        let names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        self.kernels.get(name).with_context(|| format!("no kernel `{name}` in {KERNELS}: {}", names.join(", ")))
    }
}

/// Reads `packages.lock`: `SET SHA256 ARCHIVE PATH` in each line.
pub fn lock(root: &Path) -> Result<Lock> {
    parse(&fs::read_to_string(root.join(LOCK)).with_context(|| format!("reading {LOCK}"))?)
}

fn parse(text: &str) -> Result<Lock> {
    let mut lock = Lock::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [set, sha256, archive, path] = words[..] else {
            bail!("{LOCK}:{}: want SET SHA256 ARCHIVE PATH", index + 1);
        };
        let hexadecimal = sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        ensure!(sha256.len() == 64 && hexadecimal, "{LOCK}:{}: not a SHA-256: {sha256}", index + 1);
        let package = Package { sha256: sha256.to_owned(), archive: archive.to_owned(), path: path.to_owned() };
        lock.entry(set.to_owned()).or_default().push(package);
    }
    Ok(lock)
}

/// Writes `packages.lock` with what the archive has now.
pub fn write_lock(root: &Path, catalogue: &Catalogue) -> Result<()> {
    let mut text = String::from(
        "# Written by `cargo xtask vm --lock`: set, SHA-256, archive, path of each package that kernels.toml names.\n",
    );
    let kernels = catalogue.kernels.iter().map(|(name, one)| (name, &one.packages, &one.suites, false));
    let tools = catalogue.tools.iter().map(|(name, one)| (name, &one.packages, &one.suites, one.depends));
    for (set, packages, suites, depends) in tools.chain(kernels) {
        println!("{set}");
        for package in resolve(packages, suites, depends).with_context(|| format!("resolving `{set}`"))? {
            text += &format!("{set} {} {} {}\n", package.sha256, package.archive, package.path);
        }
    }
    parse(&text)?;
    fs::write(root.join(LOCK), text).with_context(|| format!("writing {LOCK}"))
}

/// Asks apt, in a tree that knows these suites and has nothing installed.
fn resolve(packages: &[String], suites: &[String], depends: bool) -> Result<Vec<Package>> {
    let tree = tempfile::tempdir().context("making a folder")?;
    for folder in ["state/lists/partial", "cache/archives/partial", "etc"] {
        fs::create_dir_all(tree.path().join(folder))?;
    }
    let sources: String = suites.iter().map(|suite| format!("deb http://deb.debian.org/{suite} main\n")).collect();
    fs::write(tree.path().join("etc/sources.list"), sources)?;
    let apt = |words: &[&str]| -> Result<String> {
        let set = |key: &str, value: &str| format!("{key}={}", tree.path().join(value).display());
        let output = Command::new("apt-get")
            .env("LC_ALL", "C.UTF-8")
            .args(["-qq", "-o", "Dir::State::status=/dev/null", "-o", "Dir::Etc::sourceparts=-"])
            .args(["-o", "Dir::Etc::trusted=/usr/share/keyrings/debian-archive-keyring.gpg"])
            .args(["-o", "APT::Architecture=amd64", "-o", "Acquire::ForceHash=SHA256"])
            .args(["-o", &set("Dir::State", "state"), "-o", &set("Dir::Cache", "cache")])
            .args(["-o", &set("Dir::Etc::sourcelist", "etc/sources.list")])
            .args(words)
            .output()
            .context("starting apt-get")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "apt-get {}: {said}", words.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    apt(&["update"])?;
    let names = packages.iter().map(String::as_str);
    let how: &[&str] = if depends {
        &["install", "--print-uris", "-y", "--no-install-recommends"]
    } else {
        &["download", "--print-uris"]
    };
    let words: Vec<&str> = how.iter().copied().chain(names).collect();
    let mut found: Vec<Package> =
        apt(&words)?.lines().filter(|line| line.starts_with('\'')).map(offered).collect::<Result<_>>()?;
    ensure!(!found.is_empty(), "apt-get offers nothing");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// A line of `--print-uris`: `'http://HOST/ARCHIVE/PATH' FILE SIZE SHA256:HASH`.
fn offered(line: &str) -> Result<Package> {
    let words: Vec<&str> = line.split(' ').collect();
    let [address, _, _, hash] = words[..] else { bail!("apt-get says {line}") };
    let path = address.trim_matches('\'').strip_prefix("http://deb.debian.org/");
    let (archive, path) = path.and_then(|path| path.split_once('/')).with_context(|| format!("apt-get says {line}"))?;
    let sha256 = hash.strip_prefix("SHA256:").with_context(|| format!("no SHA-256: {line}"))?;
    Ok(Package { sha256: sha256.to_owned(), archive: archive.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_and_tool_is_locked() {
        let root = crate::workspace().unwrap();
        let catalogue = Catalogue::read(&root).unwrap();
        let lock = lock(&root).unwrap();
        for name in catalogue.kernels.keys().chain(catalogue.tools.keys()) {
            assert!(lock.contains_key(name), "{LOCK} has nothing for `{name}`: cargo xtask vm --lock");
        }
        for (name, kernel) in &catalogue.kernels {
            for package in &kernel.packages {
                let named = |one: &Package| one.file().replace("%2b", "+").starts_with(&format!("{package}_"));
                assert!(lock[name].iter().any(named), "{LOCK} has no {package}: cargo xtask vm --lock");
            }
        }
    }

    #[test]
    fn what_apt_offers_is_read() {
        let hash = "18d94781d1b3052e21967ac2262239e5f14fbf511d6c3e110629d7aa35340760";
        let line =
            format!("'http://deb.debian.org/debian/pool/main/b/b_1%2b2_amd64.deb' b_1+2_amd64.deb 20 SHA256:{hash}");
        let package = offered(&line).unwrap();
        assert_eq!((package.archive.as_str(), package.file()), ("debian", "b_1%2b2_amd64.deb"));
        assert_eq!(package.sha256, hash);
        assert!(offered("'http://deb.debian.org/debian/a.deb' a.deb 20 MD5Sum:aa").is_err());
    }

    #[test]
    fn a_lock_line_that_is_cut_short_is_named() {
        assert!(parse("# note\n\nqemu abc debian\n").unwrap_err().to_string().contains(":3:"));
        assert!(parse("qemu abc debian pool/x\n").unwrap_err().to_string().contains("SHA-256"));
    }
}
