//! The cluster's objects as files in a folder, watched through inotify: no polling, no thread.
//!
//! Folders inside are watched too; watches are renewed after every change, so that new folders are seen. Writers that
//! replace files by renaming, and those that write in place, are both seen when they are done.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::poll;

/// Endings of files that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Deepest folder that is read.
const MAX_DEPTH: usize = 16;

/// What a file of the folder is called and holds.
pub type Files = Vec<(String, String)>;

/// The folder.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl Directory {
    /// Begins to watch. The folder need not exist yet; until it does, reading is an error.
    ///
    /// # Errors
    /// When the kernel has no inotify left.
    pub fn watch(root: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { root: root.to_owned(), inotify: poll::readable(inotify)? })
    }

    /// Everything in the folder, sorted by path. Watches come first: what changes while files are read is seen again.
    ///
    /// # Errors
    /// What cannot be read, by name.
    pub fn read(&self) -> io::Result<Files> {
        let mut paths = BTreeSet::new();
        self.visit(&self.root, 0, &mut paths)?;
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
            Ok((path.display().to_string(), text))
        };
        paths.into_iter().map(read).collect()
    }

    fn visit(&self, folder: &Path, depth: usize, paths: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(self.inotify.get_ref(), folder, events).map_err(|errno| named(folder, &errno.into()))?;
        for entry in std::fs::read_dir(folder).map_err(|error| named(folder, &error))? {
            let path = entry.map_err(|error| named(folder, &error))?.path();
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden {
                continue;
            }
            // Follows links, as Kubernetes mounts its ConfigMaps. What has just gone is gone.
            match std::fs::metadata(&path) {
                Ok(found) if found.is_dir() && depth < MAX_DEPTH => self.visit(&path, depth + 1, paths)?,
                Ok(found) if found.is_file() && is_manifest(&path) => {
                    paths.insert(path);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(named(&path, &error)),
            }
        }
        Ok(())
    }

    /// Waits for a change. May be dropped and called again at any time without losing one.
    ///
    /// # Errors
    /// When the kernel's queue cannot be read.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            if drain(self.inotify.get_ref())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Takes all events that are waiting; whether there was one that matters.
fn drain(inotify: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    let mut any = false;
    loop {
        match reader.next() {
            Ok(event) => any |= !event.events().contains(ReadFlags::IGNORED),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(any),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn files_come_in_order_without_hidden_ones_and_other_endings() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.json", ".hidden.yaml", "c.txt", "sub/d.yml"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        runtime().block_on(async {
            let files = Directory::watch(folder.path()).unwrap().read().unwrap();
            let texts: Vec<&str> = files.iter().map(|(_, text)| text.as_str()).collect();
            assert_eq!(texts, ["a.json", "b.yaml", "sub/d.yml"]);
        });
    }

    #[test]
    fn changes_are_seen_also_in_folders_that_are_new() {
        let folder = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let directory = Directory::watch(folder.path()).unwrap();
            directory.read().unwrap();
            std::fs::create_dir(folder.path().join("sub")).unwrap();
            directory.changed().await.unwrap();
            directory.read().unwrap();
            std::fs::write(folder.path().join("sub/new.yaml"), "x").unwrap();
            directory.changed().await.unwrap();
            assert_eq!(directory.read().unwrap().len(), 1);
            std::fs::rename(folder.path().join("sub/new.yaml"), folder.path().join("moved.yaml")).unwrap();
            directory.changed().await.unwrap();
        });
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_that_names_it() {
        runtime().block_on(async {
            let error = Directory::watch(Path::new("/nonexistent")).unwrap().read().unwrap_err();
            assert!(error.to_string().starts_with("/nonexistent: "), "{error}");
        });
    }
}
