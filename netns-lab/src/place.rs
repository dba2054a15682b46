//! A network namespace: a node, a pod, or the wire between nodes.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use datapath_kernel::{Inside, TestNet};

/// A network namespace with its loopback device up.
#[derive(Debug)]
pub struct Place {
    net: TestNet,
    name: String,
}

impl Place {
    /// A new one.
    ///
    /// # Errors
    /// No permission, or no `ip` command.
    pub fn new(name: &str) -> Result<Self> {
        let net = TestNet::new().with_context(|| format!("a network namespace for {name}"))?;
        let place = Self { net, name: name.to_owned() };
        place.ip("link set lo up")?;
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
        self.net.enter().with_context(|| format!("entering {}", self.name))
    }

    /// A path that other programs can open, as long as this process lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_fd().as_raw_fd())
    }

    /// Runs `ip` inside, with the words of `arguments`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        // A child starts in the namespace of the thread that makes it.
        let _inside = self.enter()?;
        let output =
            Command::new("ip").args(arguments.split_whitespace()).output().context("starting `ip` (iproute2)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: ip {arguments}: {}", self.name, said.trim());
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
