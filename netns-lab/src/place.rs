//! A network namespace: a node, a pod, the wire between nodes, or the world outside.

use std::fs::{self, File};
use std::io::Write as _;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use datapath_kernel::TestNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::registry::{NAMESPACES, PREFIX, Run, Thing};

/// A network namespace with its loopback device up.
#[derive(Debug)]
pub struct Place {
    net: TestNet,
    name: String,
    /// Its name among named namespaces, if it has one.
    namespace: Option<String>,
}

/// The thread is inside a namespace until this is dropped. Stays on its thread.
#[derive(Debug)]
pub struct Inside {
    before: File,
    /// Not `Send`: the namespace is the thread's.
    thread: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The namespace the thread came from is still open: going back can only fail for lack of memory.
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

impl Place {
    /// A new one, which lives as long as this value or a process inside.
    ///
    /// # Errors
    /// No permission, or no `ip` command.
    pub fn new(name: &str) -> Result<Self> {
        let net = TestNet::new().with_context(|| format!("a network namespace for {name}"))?;
        let place = Self { net, name: name.to_owned(), namespace: None };
        place.ip("link set lo up")?;
        Ok(place)
    }

    /// A new one with a name that other programs can enter it by. It goes with the run.
    ///
    /// # Errors
    /// No permission, or no `ip` command.
    pub fn named(run: &Run, name: &str) -> Result<Self> {
        let namespace = format!("{PREFIX}{}-{}", run.name(), name.replace('/', "."));
        let _making = run.making(Thing::Namespace(&namespace))?;
        let mut place = Self::new(name)?;
        fs::create_dir_all(NAMESPACES).with_context(|| format!("making {NAMESPACES}"))?;
        let path = Path::new(NAMESPACES).join(&namespace);
        File::create(&path).with_context(|| format!("making {}", path.display()))?;
        rustix::mount::mount_bind(place.path(), &path).with_context(|| format!("naming {}", path.display()))?;
        place.namespace = Some(namespace);
        Ok(place)
    }

    /// What it stands for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves this thread in, until the guard is dropped. Sockets stay where they were made.
    ///
    /// # Errors
    /// No permission.
    pub fn enter(&self) -> Result<Inside> {
        let before = File::open("/proc/thread-self/ns/net").context("this thread's network namespace")?;
        move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {}", self.name))?;
        Ok(Inside { before, thread: PhantomData })
    }

    /// A path that other programs can open, as long as it (without a name: this process) lives.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.namespace {
            Some(name) => format!("{NAMESPACES}/{name}"),
            None => format!("/proc/{}/fd/{}", std::process::id(), self.net.as_fd().as_raw_fd()),
        }
    }

    /// Its name among named namespaces, if it has one.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Runs `ip` inside, with the words of `arguments`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.ip_all(arguments)
    }

    /// Runs `ip` inside, for each line.
    ///
    /// # Errors
    /// What `ip` says about the first line that it refuses.
    pub fn ip_all(&self, lines: &str) -> Result<()> {
        let mut child = {
            // A child starts in the namespace of the thread that makes it.
            let _inside = self.enter()?;
            let mut command = Command::new("ip");
            command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().context("starting `ip` (iproute2)")?
        };
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
            stdin.write_all(b"\n")?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: ip: {lines}: {}", self.name, said.trim());
        Ok(())
    }

    /// Writes a setting of `/proc/sys/net`, by its path below that.
    ///
    /// # Errors
    /// No such setting.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let _inside = self.enter()?;
        let path = format!("/proc/sys/net/{setting}");
        fs::write(&path, value).with_context(|| format!("{}: writing {path}", self.name))
    }
}

/// The namespace itself.
impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }
}
