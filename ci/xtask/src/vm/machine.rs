//! One guest: qemu, and virtiofsd that shares the machine's root with it. The guest's output comes through ports of their
//! own (virtio-serial, a Unix socket each); its console is kept in a file, for boots that fail.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// What names of folders begin with; the process's number follows.
const PREFIX: &str = "weir-vm-";

/// What to start.
pub struct Plan<'a> {
    /// How to call qemu and virtiofsd.
    pub programs: &'a Programs,
    /// The kernel's image.
    pub kernel: &'a Path,
    /// The first root.
    pub initramfs: &'a [u8],
    /// `tcg` or `kvm`.
    pub accelerator: Accelerator,
    /// MiB of memory.
    pub memory: u32,
    /// Processors.
    pub processors: u32,
    /// How long the guest may take until it runs the command.
    pub boot: Duration,
    /// How long the command may take.
    pub command: Duration,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// Translation by qemu.
    Tcg,
}

/// How to call the two programs: name and first words.
pub struct Programs {
    /// qemu-system-x86_64.
    pub qemu: Vec<String>,
    /// What qemu finds its parts with.
    pub qemu_environment: Vec<(String, String)>,
    /// virtiofsd.
    pub virtiofsd: Vec<String>,
}

/// How a guest ended.
#[derive(Debug)]
pub enum End {
    /// The command's exit code.
    Exit(u8),
    /// It never ran the command. Why, and what the console said last.
    NoBoot(String, String),
    /// It ran the command, and stopped in the middle of it.
    Died(String),
    /// The command took too long.
    TimeOut,
}

enum Event {
    Line(String),
    Closed,
}

/// Ends its process when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a guest to its end.
pub fn run(plan: &Plan<'_>) -> Result<End> {
    remove_left()?;
    let prefix = format!("{PREFIX}{}-", process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("making a folder")?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("initramfs"), plan.initramfs).context("writing the first root")?;
    let control = UnixListener::bind(path("control"))?;
    let out = UnixListener::bind(path("out"))?;
    let error = UnixListener::bind(path("error"))?;

    let share = start_share(plan.programs, &path("share"), &path("share.log"))?;
    let mut qemu = start_qemu(plan, folder.path())?;
    let (events, heard) = mpsc::channel();
    // Qemu connects all three before the guest's first instruction; if it cannot start, nobody connects.
    let mut connected = Vec::new();
    for listener in [&control, &out, &error] {
        let Some(stream) = accept(listener, &mut qemu.0)? else {
            return Ok(End::NoBoot(tail(&path("qemu.log")), tail(&path("console"))));
        };
        connected.push(stream);
    }
    let [control, out, error] = <[UnixStream; 3]>::try_from(connected).map_err(|_| anyhow!("three ports"))?;
    let copies = [copy(out, std::io::stdout()), copy(error, std::io::stderr())];
    let listener = listen(control, events);

    let end = match wait(plan, &heard) {
        Ending::Said(end) => {
            // The guest is going down; when it has, everything it wrote is here.
            let _ = heard.recv_timeout(Duration::from_secs(20));
            end
        }
        Ending::NoBoot(why) => {
            let said = [tail(&path("qemu.log")), tail(&path("share.log"))].concat();
            End::NoBoot(format!("{why}\n{said}"), tail(&path("console")))
        }
        Ending::Died => End::Died(tail(&path("console"))),
        Ending::TimeOut => End::TimeOut,
    };
    drop(qemu);
    drop(share);
    for copy in copies {
        let _ = copy.join();
    }
    let _ = listener.join();
    Ok(end)
}

enum Ending {
    Said(End),
    NoBoot(String),
    Died,
    TimeOut,
}

fn wait(plan: &Plan<'_>, heard: &Receiver<Event>) -> Ending {
    match next(heard, Instant::now() + plan.boot) {
        Ok(Event::Line(line)) if line == "ready" => {}
        Ok(Event::Line(line)) => return Ending::NoBoot(format!("the guest said `{line}` first")),
        Ok(Event::Closed) => return Ending::NoBoot("it stopped before it ran the command".to_owned()),
        Err(()) => return Ending::NoBoot(format!("it did not boot in {} s", plan.boot.as_secs())),
    }
    match next(heard, Instant::now() + plan.command) {
        Ok(Event::Line(line)) => match line.strip_prefix("exit ").and_then(|code| code.parse().ok()) {
            Some(code) => Ending::Said(End::Exit(code)),
            None => Ending::Died,
        },
        Ok(Event::Closed) => Ending::Died,
        Err(()) => Ending::TimeOut,
    }
}

fn next(heard: &Receiver<Event>, until: Instant) -> Result<Event, ()> {
    match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(event) => Ok(event),
        Err(RecvTimeoutError::Timeout) => Err(()),
        Err(RecvTimeoutError::Disconnected) => Ok(Event::Closed),
    }
}

fn start_share(programs: &Programs, socket: &Path, log: &Path) -> Result<Process> {
    let share = Process(
        command(&programs.virtiofsd)?
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log)?)
            .spawn()
            .context("starting virtiofsd")?,
    );
    let until = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        ensure!(Instant::now() < until, "virtiofsd does not start: {}", tail(log));
        thread::sleep(Duration::from_millis(20));
    }
    Ok(share)
}

fn start_qemu(plan: &Plan<'_>, folder: &Path) -> Result<Process> {
    let (accelerator, processor) = match plan.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
    };
    let at = |name: &str| folder.join(name).display().to_string();
    let memory = plan.memory;
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-M", "q35", "-accel", accelerator, "-cpu", processor, "-smp", &plan.processors.to_string()]);
    add(&["-m", &memory.to_string(), "-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")]);
    add(&["-numa", "node,memdev=mem", "-nodefaults", "-no-reboot", "-no-user-config", "-display", "none"]);
    add(&["-kernel", &plan.kernel.display().to_string(), "-initrd", &at("initramfs")]);
    add(&["-append", "console=ttyS0 panic=-1 quiet"]);
    add(&["-chardev", &format!("file,id=console,path={}", at("console")), "-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=share,path={}", at("share"))]);
    add(&["-device", "vhost-user-fs-pci,chardev=share,tag=weir-root,queue-size=1024"]);
    add(&["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    for port in ["control", "out", "error"] {
        add(&["-chardev", &format!("socket,id={port},path={}", at(port))]);
        add(&["-device", &format!("virtserialport,chardev={port},name=weir.{port}")]);
    }
    let qemu = command(&plan.programs.qemu)?
        .args(&arguments)
        .envs(plan.programs.qemu_environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("qemu.log"))?)
        .spawn()
        .context("starting qemu")?;
    Ok(Process(qemu))
}

/// Removes what runs left that were ended by a signal.
fn remove_left() -> Result<()> {
    for entry in fs::read_dir(env::temp_dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(process, _)| process);
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another run may be faster.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// A command that ends when this process does, however that ends.
fn command(words: &[String]) -> Result<Command> {
    ensure!(!words.is_empty(), "no program");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(words);
    Ok(command)
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<Option<UnixStream>> {
    listener.set_nonblocking(true)?;
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("waiting for qemu"),
        }
        if qemu.try_wait()?.is_some() {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("qemu did not connect within a minute")
}

fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 1 << 14];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            // If nobody listens any more, the guest still has to be drained to its end.
            let _ = to.write_all(&buffer[..read]).and_then(|()| to.flush());
        }
    })
}

fn listen(control: UnixStream, events: Sender<Event>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(control).lines() {
            let Ok(line) = line else { break };
            if events.send(Event::Line(line)).is_err() {
                break;
            }
        }
        let _ = events.send(Event::Closed);
    })
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].iter().map(|line| format!("    {}\n", line.trim_end())).collect()
}
