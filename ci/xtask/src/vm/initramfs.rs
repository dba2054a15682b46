//! The guest's first root: busybox, a few modules, the script `init` and the command. An archive as in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`, format "newc", not compressed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// What the guest needs before it has its root: the share, what is laid over it, and the ports.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "virtio_rng", "virtiofs", "overlay"];

/// An archive as it grows.
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// With the folders and the console that every first root has.
    pub fn new() -> Result<Self> {
        let mut archive = Self { bytes: Vec::new(), inode: 0 };
        for folder in ["dev", "proc", "sys", "run", "lower", "writes", "new", "weir", "weir/modules"] {
            archive.add(folder, FOLDER | 0o755, (0, 0), b"")?;
        }
        archive.add("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), b"")?;
        Ok(archive)
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(name, FILE | mode, (0, 0), content)
    }

    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let name_size = u32::try_from(name.len() + 1).with_context(|| format!("{name} is too long"))?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The bytes, with the entry that ends them.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, (0, 0), b"")?;
        Ok(self.bytes)
    }
}

/// Modules of a kernel's tree and what each needs.
pub struct Modules {
    folder: PathBuf,
    needs: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
}

impl Modules {
    /// Reads `modules.dep` and `modules.builtin`.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let mut needs = BTreeMap::new();
        for line in read("modules.dep")?.lines() {
            let (path, rest) = line.split_once(':').with_context(|| format!("modules.dep has {line}"))?;
            needs.insert(path.to_owned(), rest.split_whitespace().map(str::to_owned).collect());
        }
        let built_in = read("modules.builtin")?.lines().map(name).collect();
        Ok(Self { folder: folder.to_owned(), needs, built_in })
    }

    /// Paths of a module and of what it needs, in the order of loading; none if it is part of the kernel.
    fn order(&self, wanted: &str) -> Result<Vec<&str>> {
        let Some((path, needs)) = self.needs.iter().find(|(path, _)| name(path) == wanted) else {
            ensure!(self.built_in.contains(wanted), "the kernel has no module `{wanted}`");
            return Ok(Vec::new());
        };
        // `modules.dep` has what the closest needs last.
        Ok(needs.iter().rev().chain([path]).map(String::as_str).collect())
    }

    /// Adds the modules that the first root needs, named so that their order is that of loading.
    pub fn add_to(&self, archive: &mut Archive) -> Result<()> {
        let mut seen = BTreeSet::new();
        for wanted in MODULES {
            for path in self.order(wanted)? {
                if seen.insert(path.to_owned()) {
                    let whole = self.folder.join(path);
                    let content = fs::read(&whole).with_context(|| format!("reading {}", whole.display()))?;
                    archive.file(&format!("weir/modules/{:02}-{}.ko", seen.len(), name(path)), 0o644, &content)?;
                }
            }
        }
        Ok(())
    }
}

/// A module's name: its file's, as `lsmod` writes it.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_archive_is_what_cpio_writes() {
        let mut archive = Archive::new().unwrap();
        archive.file("weir/a", 0o644, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let at = text.find("weir/a\0").unwrap();
        // 13 fields of 8 digits; size is the seventh, the name's size the twelfth.
        let header = &text[at - 110..at];
        assert_eq!(&header[..6], "070701");
        assert_eq!(&header[6 + 6 * 8..6 + 7 * 8], "00000005");
        assert_eq!(&header[6 + 11 * 8..6 + 12 * 8], "00000007");
        assert!(text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let text = "kernel/c.ko: kernel/b-b.ko kernel/a.ko\nkernel/b-b.ko: kernel/a.ko\nkernel/a.ko:\n";
        fs::write(folder.path().join("modules.dep"), text).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/fs/overlay.ko\n").unwrap();
        let modules = Modules::read(folder.path()).unwrap();
        assert_eq!(modules.order("c").unwrap(), ["kernel/a.ko", "kernel/b-b.ko", "kernel/c.ko"]);
        assert_eq!(modules.order("b_b").unwrap(), ["kernel/a.ko", "kernel/b-b.ko"]);
        assert!(modules.order("overlay").unwrap().is_empty());
        assert!(modules.order("zfs").is_err());
    }

    #[test]
    fn a_quoted_word_reaches_the_command_unchanged() {
        let word = "a 'b' \"c\" $HOME `x` \\";
        let script = format!("printf %s {}", quoted(word));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
    }
}
