//! The agent of a node: a real `weir-agent` process in the node's network namespace.
//!
//! The process is this program again under the other name: [`be_agent`] is the first thing that its `main` calls. The lab
//! knows the agent as an operator does: by its settings file, its folder of objects, its socket and its log.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agent_api::{EventKind, Filter, Line, Reply, Request, Status};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::de::DeserializeOwned;

use crate::place::Place;
use crate::poll;
use crate::registry::{Run, Thing};
use crate::watch::Watch;

/// What an agent's process is called.
pub const NAME: &str = "weir-agent";
/// What an agent logs after a pass over its maps.
const SETTLED: &str = "maps are as the objects say";
/// What it logs when a pass failed.
const FAILED: [&str; 2] = ["objects are wrong", "not as the objects say"];
/// How long a pass, or the verifier at a start, may take.
const PASS: Duration = Duration::from_secs(60);

/// The program that is run for an agent, where it is not this one.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Runs `weir-agent` if this process was started as one. `main` of a program that builds worlds must begin with it (or
/// name such a program with [`use_program`]).
#[must_use]
pub fn be_agent() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    (arguments.first()? == NAME).then(|| agent::cli::main(arguments))
}

/// Agents are started with this program instead of this process's own.
pub fn use_program(path: &Path) {
    // A second time with another program would be a mistake that no caller makes.
    let _ = PROGRAM.set(path.to_owned());
}

/// The agent of a node.
#[derive(Debug)]
pub struct NodeAgent {
    node: String,
    folder: PathBuf,
    bpffs: PathBuf,
    process: Mutex<Option<Process>>,
    watch: Arc<Watch>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    log: Log,
}

/// The agent's log as it grows.
#[derive(Debug)]
struct Log {
    file: BufReader<File>,
    inotify: std::os::fd::OwnedFd,
    /// The beginning of a line that is not complete yet.
    part: String,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// From its end on.
    fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(0))?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY)?;
        Ok(Self { file: BufReader::new(file), inotify, part: String::new() })
    }

    fn line(&mut self) -> Result<Option<String>> {
        self.file.read_line(&mut self.part)?;
        Ok(self.part.ends_with('\n').then(|| std::mem::take(&mut self.part)))
    }

    fn clear_wakeups(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while reader.next().is_ok() {}
    }
}

impl NodeAgent {
    /// Writes an agent's settings; nothing runs yet. `settings` are further lines of its file.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn prepare(run: &Run, node: &str, settings: &str, watch: &Arc<Watch>) -> Result<Self> {
        let folder = run.path().join(node);
        for part in ["objects", "state"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("making {}", folder.display()))?;
        }
        // The bpf file system takes no dots.
        let pins = format!("{}{}-{node}", crate::registry::PREFIX, run.name()).replace('.', "_");
        let bpffs = Path::new("/sys/fs/bpf").join(pins);
        let path = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "node = {node:?}\ndirectory = {:?}\nstate = {:?}\nsocket = {:?}\nbpffs = {:?}\n{settings}",
            path("objects"),
            path("state"),
            path("agent.sock"),
            bpffs.display().to_string(),
        );
        fs::write(folder.join("weir.toml"), text)?;
        Ok(Self { node: node.to_owned(), folder, bpffs, process: Mutex::new(None), watch: Arc::clone(watch) })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its socket, for `weir --socket`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Its settings file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("weir.toml")
    }

    /// Its folder of pinned maps and links.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        guard(&self.process).as_ref().map(|process| process.child.id())
    }

    /// Bytes of memory that it has now.
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }

    /// Starts the process in the node's namespace. [`Self::wait_settled`] waits for its first pass.
    ///
    /// # Errors
    /// When it runs already, or cannot be started.
    pub fn spawn(&self, run: &Run, place: &Place) -> Result<()> {
        let mut process = guard(&self.process);
        ensure!(process.is_none(), "{}: its agent runs already", self.node);
        let config = self.config();
        let out = File::options().create(true).append(true).open(self.log())?;
        let log = Log::open(&self.log())?;
        {
            let _making = run.making(Thing::Pins(&self.bpffs))?;
        }
        let _making = run.making(Thing::Agent(&config))?;
        let program = PROGRAM.get().map_or(Path::new("/proc/self/exe"), PathBuf::as_path);
        let mut command = Command::new(program);
        command.arg0(NAME).arg("--config").arg(&config);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).current_dir("/");
        // Signals of the terminal are for the lab, which ends its agents itself.
        command.process_group(0);
        // A child starts in the namespace of the thread that makes it.
        let _inside = place.enter()?;
        let child = command.spawn().with_context(|| format!("starting {NAME}"))?;
        *process = Some(Process { child, log });
        Ok(())
    }

    /// Waits until the agent has read so many objects, and has said since it was last waited for that its maps are as they
    /// say; listens to its events from then on.
    ///
    /// # Errors
    /// What it says is wrong, or its end.
    pub fn wait_settled(&self, objects: usize) -> Result<()> {
        let mut process = guard(&self.process);
        let process = process.as_mut().with_context(|| format!("{}: its agent does not run", self.node))?;
        loop {
            self.wait_line(process)?;
            // It does one thing after the other: what it has read when it answers, it has put into the maps.
            let status = self.status()?;
            if status.source.objects == objects && status.source.error.is_none() {
                return self.watch.listen(&self.node, &self.socket());
            }
        }
    }

    fn wait_line(&self, process: &mut Process) -> Result<()> {
        let ended = |said: &str| anyhow!("{}: its agent stopped: {}", self.node, said.trim());
        let pid = i32::try_from(process.child.id()).ok().and_then(Pid::from_raw).context("a process number")?;
        let alive = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let end = Instant::now() + PASS;
        let mut last = String::new();
        loop {
            process.log.clear_wakeups();
            while let Some(line) = process.log.line()? {
                if line.contains(SETTLED) {
                    return Ok(());
                }
                if FAILED.iter().any(|failed| line.contains(failed)) {
                    bail!("{}: {}", self.node, line.trim());
                }
                last = line;
            }
            if process.child.try_wait()?.is_some() {
                return Err(ended(&last));
            }
            let left = end.saturating_duration_since(Instant::now());
            let inotify = process.log.inotify.as_fd();
            let mut wait = [PollFd::new(&inotify, PollFlags::IN), PollFd::new(&alive, PollFlags::IN)];
            ensure!(
                poll::any(&mut wait, left)? > 0,
                "{}: no pass of its agent in {PASS:?}: {}",
                self.node,
                last.trim()
            );
        }
    }

    /// Gives the agent these objects, in place of all others. [`Self::wait_settled`] waits until they are in force.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_objects(&self, text: &str) -> Result<()> {
        // As a rename of one file it is one change, and one pass.
        let new = self.folder.join("objects.new");
        fs::write(&new, text)?;
        fs::rename(&new, self.folder.join("objects/objects.yaml"))?;
        Ok(())
    }

    /// The answer to one request.
    ///
    /// # Errors
    /// The agent's refusal, or no agent.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let mut stream = self.send(request)?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let reply = serde_json::from_str(&line).with_context(|| format!("{}: {line}", self.node))?;
        match reply {
            Reply::Ok(answer) => Ok(answer),
            Reply::Error(refusal) => Err(anyhow!("{}: {}", self.node, refusal.message)),
        }
    }

    fn send(&self, request: &Request) -> Result<BufReader<UnixStream>> {
        let socket = self.socket();
        let mut stream = UnixStream::connect(&socket).with_context(|| format!("{}: its agent's socket", self.node))?;
        stream.set_read_timeout(Some(PASS))?;
        stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
        Ok(BufReader::new(stream))
    }

    /// How the agent is.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn status(&self) -> Result<Status> {
        self.ask(&Request::Status {})
    }

    /// Events as they happen, as long as the agent lives.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn monitor(&self, kinds: &[EventKind]) -> Result<impl Iterator<Item = Line> + use<>> {
        let mut stream = self.send(&Request::Monitor(Filter { kinds: kinds.to_vec(), ..Filter::default() }))?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        stream.get_ref().set_read_timeout(None)?;
        Ok(stream.lines().map_while(|line| serde_json::from_str(&line.ok()?).ok()))
    }

    /// SIGKILL: the agent is gone, what is in the kernel stays.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        let mut process = guard(&self.process);
        let mut killed = process.take().with_context(|| format!("{}: its agent does not run", self.node))?;
        killed.child.kill()?;
        killed.child.wait()?;
        self.watch.forget(&self.node);
        Ok(())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        // What cannot be read is not there.
        let _ = File::open(self.log()).and_then(|mut file| file.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        if let Some(mut process) = guard(&self.process).take() {
            // It may be dead already.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}
