//! Captures at several devices at the same time, and what became of a check that used them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags};

use crate::capture::{self, Capture, Frame, Recording, Way};
use crate::place::Place;
use crate::poll;
use crate::report::Report;
use crate::wire::packet::{Ip, Packet};

/// How long nothing has to come before captures end; and how often that is tried, because others may talk on and on.
const QUIET: Duration = Duration::from_millis(10);
const ROUNDS: usize = 100;

/// What a check found: a summary of what it looked at, or what is wrong.
pub type Found = std::result::Result<String, String>;

/// Name of a family.
#[must_use]
pub const fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
}

/// Captures at several devices, in the order that they were asked for.
#[derive(Debug)]
pub struct Taps(Vec<Capture>);

impl Taps {
    /// Begins at all of them.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start(devices: &[(&Place, &str)]) -> Result<Self> {
        devices.iter().map(|(place, device)| Capture::start(place, device)).collect::<Result<_>>().map(Self)
    }

    /// Ends all, when nothing has passed any of them for [`QUIET`]: what passed the first device has passed the last.
    ///
    /// # Errors
    /// As [`Capture::stop`].
    pub fn stop<const N: usize>(mut self) -> Result<[Recording; N]> {
        for _ in 0..ROUNDS {
            for capture in &mut self.0 {
                capture.frames()?;
            }
            let mut sockets: Vec<_> = self.0.iter().map(|capture| PollFd::new(capture, PollFlags::IN)).collect();
            if poll::any(&mut sockets, QUIET)? == 0 {
                break;
            }
        }
        let all: Vec<Recording> = self.0.into_iter().map(Capture::stop).collect::<Result<_>>()?;
        all.try_into().map_err(|all: Vec<_>| anyhow::anyhow!("{} captures, {N} wanted", all.len()))
    }
}

/// Notes a check under its name. If it failed, what was captured stays in a file, whose name is in the report; if frames
/// were lost it has failed whatever it found.
pub fn note(report: &mut Report, name: &str, recordings: &[Recording], found: Found) {
    let lost = recordings.iter().find(|one| one.lost > 0);
    let found = match lost {
        Some(one) => Err(format!("{} frames of {} were not captured", one.lost, one.name)),
        None => found,
    };
    match found {
        Ok(summary) if summary.is_empty() => report.check(name, None),
        Ok(summary) => report.check(format!("{name}: {summary}"), None),
        Err(wrong) => report.check(name, Some(format!("{wrong}{}", keep(name, recordings)))),
    }
}

/// Writes what was captured into a file of its own.
fn keep(name: &str, recordings: &[Recording]) -> String {
    if recordings.is_empty() {
        return String::new();
    }
    let words: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let path: PathBuf = std::env::temp_dir().join(format!("weir-lab-{}-{words:.60}.pcapng", std::process::id()));
    match capture::save(&path, recordings) {
        Ok(()) => format!("; captured in {}", path.display()),
        Err(error) => format!("; captures cannot be kept: {error}"),
    }
}

/// Frames of one way whose IP header is wanted.
pub fn select(frames: &[Frame], way: Way, wanted: impl Fn(&Ip) -> bool) -> Vec<&Frame> {
    let right = |frame: &&Frame| {
        frame.way == way && Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip()).is_some_and(|ip| wanted(&ip))
    };
    frames.iter().filter(right).collect()
}

/// Frames of one way that carry such packets through the tunnel.
pub fn select_inside(frames: &[Frame], way: Way, wanted: impl Fn(&Ip) -> bool) -> Vec<&Frame> {
    let inside = |bytes: &[u8]| -> Option<Ip> {
        let inner = Packet::read(bytes).ok()?.tunnelled()?.inner;
        Packet::read(inner).ok()?.ip()
    };
    let right = |frame: &&Frame| frame.way == way && inside(&frame.bytes).is_some_and(|ip| wanted(&ip));
    frames.iter().filter(right).collect()
}
