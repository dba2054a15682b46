//! The cluster's objects as files in a folder, watched through inotify: no polling, no thread.
//!
//! Folders inside are watched too; watches are renewed after every change, so that new folders are seen. Writers that
//! replace files by renaming, and those that write in place, are both seen when they are done.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::poll;

/// Endings of files that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Deepest folder that is read.
const MAX_DEPTH: usize = 16;

/// A file is believed to hold what it held if it was last changed this long before it was read: clocks of file systems
/// tick only every few milliseconds, and two changes in one tick look the same.
const SETTLED: Duration = Duration::from_secs(2);

/// What a file of the folder is called and holds.
pub type Files = Vec<(String, Arc<str>)>;

/// The folder.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    /// What was read last.
    known: BTreeMap<PathBuf, Known>,
}

/// What a file held.
#[derive(Clone, Debug)]
struct Known {
    stamp: Stamp,
    /// It had not been changed for a while when it was read.
    settled: bool,
    text: Arc<str>,
}

/// What differs when a file is another one or was written: device, inode, size, and when (seconds and nanoseconds) its
/// contents and anything else of it were changed. The last cannot be set by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or_default();
        now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).is_ok_and(|age| age > SETTLED)
    }
}

impl Directory {
    /// Begins to watch. The folder need not exist yet; until it does, reading is an error.
    ///
    /// # Errors
    /// When the kernel has no inotify left.
    pub fn watch(root: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { root: root.to_owned(), inotify: poll::readable(inotify)?, known: BTreeMap::new() })
    }

    /// Everything in the folder, sorted by path; files that are as they were are not read again. Watches come first: what
    /// changes while files are read is seen again.
    ///
    /// # Errors
    /// What cannot be read, by name.
    pub fn read(&mut self) -> io::Result<Files> {
        let mut paths = BTreeMap::new();
        self.visit(&self.root, 0, &mut paths)?;
        let now = SystemTime::now();
        let mut before = std::mem::take(&mut self.known);
        let mut files = Files::with_capacity(paths.len());
        for (path, stamp) in paths {
            let old = before.remove(&path);
            let known = match old {
                Some(known) if known.settled && known.stamp == stamp => known,
                Some(_) | None => {
                    let text = std::fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
                    // Whoever has read the file knows it again.
                    let same = old.filter(|known| *known.text == *text).map(|known| known.text);
                    Known { stamp, settled: stamp.is_settled(now), text: same.unwrap_or_else(|| text.into()) }
                }
            };
            files.push((path.display().to_string(), Arc::clone(&known.text)));
            self.known.insert(path, known);
        }
        Ok(files)
    }

    fn visit(&self, folder: &Path, depth: usize, paths: &mut BTreeMap<PathBuf, Stamp>) -> io::Result<()> {
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
                    paths.insert(path, Stamp::of(&found));
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
            let texts: Vec<&str> = files.iter().map(|(_, text)| &**text).collect();
            assert_eq!(texts, ["a.json", "b.yaml", "sub/d.yml"]);
        });
    }

    #[test]
    fn changes_are_seen_also_in_folders_that_are_new() {
        let folder = tempfile::tempdir().unwrap();
        runtime().block_on(async {
            let mut directory = Directory::watch(folder.path()).unwrap();
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
    fn a_file_that_is_as_it_was_is_not_read_again_and_every_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        std::fs::write(&path, "1").unwrap();
        runtime().block_on(async {
            let mut directory = Directory::watch(folder.path()).unwrap();
            let first = directory.read().unwrap();
            // As long as the file is new, its text is read, and is the same one.
            assert!(Arc::ptr_eq(&first[0].1, &directory.read().unwrap()[0].1));
            // Two writes of the same size, as fast as it goes.
            for text in ["2", "3", "4"] {
                std::fs::write(&path, text).unwrap();
                assert_eq!(&*directory.read().unwrap()[0].1, text);
            }
            // A file that has been as it is for long is only looked at.
            let known = directory.known.get_mut(&path).unwrap();
            (known.settled, known.text) = (true, "kept".into());
            assert_eq!(&*directory.read().unwrap()[0].1, "kept");
            // Another file of the same size, with the old time of change, in its place.
            let times = std::fs::metadata(&path).unwrap().modified().unwrap();
            let other = folder.path().join("other");
            std::fs::write(&other, "5").unwrap();
            std::fs::File::options().write(true).open(&other).unwrap().set_modified(times).unwrap();
            std::fs::rename(&other, &path).unwrap();
            assert_eq!(&*directory.read().unwrap()[0].1, "5");
            // Written in place, and the time of change set back.
            directory.known.get_mut(&path).unwrap().settled = true;
            std::fs::write(&path, "6").unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
            assert_eq!(&*directory.read().unwrap()[0].1, "6");
            std::fs::remove_file(&path).unwrap();
            assert!(directory.read().unwrap().is_empty() && directory.known.is_empty());
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
