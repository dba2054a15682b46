//! What a lab made, written down before it is made, so that whatever ends the lab, everything goes: a drop, a signal, the
//! next start after a crash, `down`.
//!
//! Each run has a folder under `/run/weir-lab` that it holds locked; a folder that nobody holds is of a run that is gone,
//! and is cleared away unless it is marked as left standing. There is one way to clear away, whoever asks for it.
//!
//! Invariant: a line of `made` is on disk before the thing it names exists.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

/// Folders of all runs.
const ROOT: &str = "/run/weir-lab";
/// Where named network namespaces are, as `ip netns` has it.
pub const NAMESPACES: &str = "/run/netns";
/// Beginning of every name that labs give.
pub const PREFIX: &str = "weir-lab-";
/// Where maps and links are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// Runs of this process that are not cleared away yet.
static LIVE: Mutex<Vec<Arc<Folder>>> = Mutex::new(Vec::new());
/// Held for reading while something is made, for writing by a signal: nothing is made after it was cleared away.
static MAKING: RwLock<()> = RwLock::new(());
/// How long an agent may take to end: the verifier does not stop at once.
const ENDING: Duration = Duration::from_secs(60);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The folder of a run.
#[derive(Debug)]
struct Folder {
    name: String,
    path: PathBuf,
    /// Locked as long as this is open.
    _lock: File,
    made: Mutex<File>,
}

/// A run: everything it makes goes with it.
#[derive(Debug)]
pub struct Run {
    folder: Arc<Folder>,
    standing: bool,
}

/// Something may be made while this is held.
#[derive(Debug)]
pub struct Making<'a>(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>);

/// A thing that is made.
#[derive(Clone, Copy, Debug)]
pub enum Thing<'a> {
    /// A named network namespace.
    Namespace(&'a str),
    /// A folder of pins in the bpf file system.
    Pins(&'a Path),
    /// An agent with this settings file.
    Agent(&'a Path),
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps others from beginning a run, or clearing one away.
fn whole_root() -> Result<File> {
    fs::create_dir_all(ROOT).with_context(|| format!("making {ROOT}"))?;
    let path = Path::new(ROOT).join(".lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
    Ok(lock)
}

fn try_lock(folder: &Path) -> Result<Option<File>> {
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("locking {}", folder.display())),
    }
}

impl Run {
    /// Begins a run. Without a name it has one that no other has.
    ///
    /// # Errors
    /// When a lab of that name stands already.
    pub fn begin(name: Option<&str>) -> Result<Self> {
        let _root = whole_root()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = name.map_or_else(|| format!("{}-{number}", std::process::id()), str::to_owned);
        let path = Path::new(ROOT).join(&name);
        if path.exists() {
            bail!("lab {name} stands already: `netns-lab down {name}` takes it down");
        }
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let lock = try_lock(&path)?.with_context(|| format!("{} is locked", path.display()))?;
        let made = File::options().create_new(true).append(true).open(path.join("made"))?;
        let folder = Arc::new(Folder { name, path, _lock: lock, made: Mutex::new(made) });
        guard(&LIVE).push(Arc::clone(&folder));
        Ok(Self { folder, standing: false })
    }

    /// The run's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.folder.name
    }

    /// A folder for files of this run.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder.path
    }

    /// Writes down what is about to be made. It may be made as long as the answer is held.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn making(&self, thing: Thing<'_>) -> Result<Making<'static>> {
        let making = Making(MAKING.read().unwrap_or_else(PoisonError::into_inner));
        let line = match thing {
            Thing::Namespace(name) => format!("namespace {name}\n"),
            Thing::Pins(path) => format!("pins {}\n", path.display()),
            Thing::Agent(config) => format!("agent {}\n", config.display()),
        };
        guard(&self.folder.made).write_all(line.as_bytes()).context("writing down what is made")?;
        Ok(making)
    }

    /// Leaves everything standing after this process.
    ///
    /// # Errors
    /// When it cannot be marked so.
    pub fn leave_standing(&mut self) -> Result<()> {
        fs::write(self.folder.path.join("standing"), "")?;
        self.standing = true;
        forget(&self.folder);
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.standing {
            return;
        }
        if let Err(error) = clear(&self.folder.path) {
            eprintln!("{}: not everything could be removed: {error:#}", self.folder.path.display());
        }
        forget(&self.folder);
    }
}

fn forget(folder: &Arc<Folder>) {
    guard(&LIVE).retain(|other| !Arc::ptr_eq(other, folder));
}

/// Removes one named network namespace; one that is not there is no error.
///
/// # Errors
/// What the kernel says.
pub fn remove_namespace(name: &str) -> io::Result<()> {
    let path = Path::new(NAMESPACES).join(name);
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    gone(fs::remove_file(&path))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes everything that the run of this folder made, and the folder. Safe to repeat.
fn clear(folder: &Path) -> Result<()> {
    let made = match fs::read_to_string(folder.join("made")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
    };
    let of = |kind: &'static str| {
        made.lines().filter_map(move |line| line.split_once(' ')).filter(move |(found, _)| *found == kind)
    };
    end_agents(&of("agent").map(|(_, config)| config.to_owned()).collect())?;
    for (_, path) in of("pins") {
        let path = Path::new(path);
        // Nothing else is ever removed, whatever the file says.
        if path.strip_prefix(BPFFS).is_ok_and(|rest| rest.to_string_lossy().starts_with(PREFIX)) {
            gone(fs::remove_dir_all(path)).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for (_, name) in of("namespace") {
        if name.starts_with(PREFIX) && !name.contains('/') {
            remove_namespace(name).with_context(|| format!("removing network namespace {name}"))?;
        }
    }
    gone(fs::remove_dir_all(folder)).with_context(|| format!("removing {}", folder.display()))
}

/// Ends agents by their settings files, which nobody else has, and waits until they are gone.
fn end_agents(configs: &BTreeSet<String>) -> Result<()> {
    if configs.is_empty() {
        return Ok(());
    }
    let mut ending: Vec<OwnedFd> = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let Ok(number) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let is_ours = || {
            let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.first() == Some(&crate::node::NAME.as_bytes())
                && words.iter().any(|word| configs.contains(&*String::from_utf8_lossy(word)))
        };
        if !is_ours() {
            continue;
        }
        let Some(pid) = Pid::from_raw(number) else { continue };
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The number may have become somebody else's meanwhile; what is open now cannot.
        if is_ours() && rustix::process::pidfd_send_signal(&process, Signal::KILL).is_ok() {
            ending.push(process);
        }
    }
    for process in &ending {
        ensure!(crate::poll::readable(process, ENDING)?, "an agent does not end after SIGKILL");
    }
    Ok(())
}

/// Clears away what runs left that are gone. Returns their names.
///
/// # Errors
/// What cannot be removed.
pub fn clear_crashed() -> Result<Vec<String>> {
    clear_where(|folder| !folder.join("standing").exists())
}

/// Clears away labs that were left standing: this one, or all. Returns their names.
///
/// # Errors
/// What cannot be removed.
pub fn take_down(name: Option<&str>) -> Result<Vec<String>> {
    clear_where(|folder| name.is_none_or(|name| folder.file_name().is_some_and(|found| found == name)))
}

fn clear_where(wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let _root = whole_root()?;
    let mut cleared = Vec::new();
    for entry in fs::read_dir(ROOT)? {
        let path = entry?.path();
        if !path.is_dir() || !wanted(&path) {
            continue;
        }
        // Somebody is at work there.
        let Some(_lock) = try_lock(&path)? else { continue };
        clear(&path)?;
        cleared.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    cleared.sort();
    Ok(cleared)
}

/// From now on SIGINT, SIGTERM and SIGHUP clear away what this process made, and end it.
///
/// # Errors
/// When signals cannot be had.
pub fn clear_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = signals.0.recv() => 2,
                _ = signals.1.recv() => 15,
                _ = signals.2.recv() => 1,
            }
        });
        let _nothing_more = MAKING.write().unwrap_or_else(PoisonError::into_inner);
        for folder in guard(&LIVE).iter() {
            if let Err(error) = clear(&folder.path) {
                eprintln!("{}: not everything could be removed: {error:#}", folder.path.display());
            }
        }
        eprintln!("netns-lab: stopped by a signal; what it made is removed");
        std::process::exit(128 + number);
    })?;
    Ok(())
}
