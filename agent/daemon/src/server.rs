//! The socket: requests in, answers out, and the one loop that does everything in turn.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{Event, Filter, Line, Refusal, Reply, Request};
use datapath_kernel::RingReader;
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::agent::Agent;
use crate::net::watch::Watch;
use crate::{Failure, poll};

/// How long files must be quiet before they are read.
const QUIET: Duration = Duration::from_millis(5);
/// When it is tried again, at first, if something is not as it should be; then after twice the time, and so on.
const RETRY: Duration = Duration::from_secs(1);
/// The longest of these times.
const SELDOM: Duration = Duration::from_secs(32);
/// How long devices must have changed before they are looked at: a change seldom comes alone.
const SETTLE: Duration = Duration::from_millis(20);
/// How often devices are looked at, at most.
const APART: Duration = Duration::from_millis(200);
/// Events that wait for a slow client.
const BACKLOG: usize = 8192;
/// Events that are taken at once, so that everything else has its turn.
const BATCH: usize = 512;
/// Bytes of a request, at most.
const LONGEST: usize = 64 << 10;

/// A request, and where its answer, one line of JSON, goes.
type Asked = (Request, oneshot::Sender<String>);

/// Serves until a signal says stop. What is in the kernel stays there.
///
/// # Errors
/// When the socket or signals cannot be had.
pub async fn serve(mut agent: Agent) -> Result<(), Failure> {
    let listener = listen(&agent.settings.socket)?;
    let (events, _) = broadcast::channel::<Arc<Event>>(BACKLOG);
    let (requests, mut asked) = mpsc::channel::<Asked>(64);
    let watch = Watch::open()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut sweep = interval(Duration::from_secs(agent.settings.sweep_seconds));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    agent.refresh().await;
    watch.forget()?;
    let mut ring = None;
    let (mut looked, mut look, mut retry, mut wait) = (Instant::now(), None, None, RETRY);
    loop {
        match (agent.is_behind(), retry) {
            (true, None) => {
                retry = Some(Instant::now() + wait);
                wait = if agent.is_unreadable() { RETRY } else { SELDOM.min(wait * 2) };
            }
            (false, _) => (retry, wait) = (None, RETRY),
            (true, Some(_)) => {}
        }
        if ring.is_none() {
            ring = agent.events()?.map(poll::readable).transpose()?;
        }
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = agent.directory.changed() => {
                changed?;
                sleep(QUIET).await;
                agent.refresh().await;
            }
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                retry = None;
                agent.retry().await;
            }
            changed = watch.changed(), if look.is_none() => {
                changed?;
                look = Some((looked + APART).max(Instant::now() + SETTLE));
            }
            () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                watch.forget()?;
                (looked, look) = (Instant::now(), None);
                agent.heal().await;
                if agent.is_behind() {
                    agent.retry().await;
                }
            }
            _ = sweep.tick() => agent.sweep().await,
            records = next_events(ring.as_mut()) => {
                let wanted = events.receiver_count() > 0;
                for event in records?.iter().filter(|_| wanted).filter_map(|record| agent.event(record)) {
                    // An error only says that the last listener has just gone.
                    let _ = events.send(Arc::new(event));
                }
            }
            Some((request, answer)) = asked.recv() => {
                let line = agent.answer(request).await;
                let _ = answer.send(line);
            }
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let (requests, events) = (requests.clone(), events.clone());
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &requests, &events).await {
                        tracing::debug!("client: {error}");
                    }
                });
            }
        }
    }
    let _ = std::fs::remove_file(&agent.settings.socket);
    tracing::info!(
        bpffs = %agent.settings.bpffs.display(),
        "stopped; devices, programs and maps stay, traffic and policy go on (`weir-agent --cleanup` removes them)"
    );
    Ok(())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        // Of an earlier run: the lock of the state folder says that there is no other.
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            let what = format!("{}: is there and no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody else may connect in the moment before the permissions are set.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Waits for events and takes all there are; for ever where there is no ring buffer.
async fn next_events(ring: Option<&mut AsyncFd<RingReader>>) -> io::Result<Vec<Vec<u8>>> {
    let Some(ring) = ring else {
        return std::future::pending().await;
    };
    let mut ready = ring.readable_mut().await?;
    let records = ready.get_inner_mut().take(BATCH);
    // The kernel wakes a reader that has taken everything. What wakes it in this moment is not cleared: it is newer.
    if records.len() < BATCH {
        ready.clear_ready();
    }
    Ok(records)
}

fn line<T: Serialize>(reply: &Reply<T>) -> String {
    let text = serde_json::to_string(reply).unwrap_or_else(|error| {
        format!("{{\"error\":{{\"input\":false,\"message\":\"{}\"}}}}", error.to_string().replace('"', "'"))
    });
    text + "\n"
}

fn reply<T: Serialize>(result: Result<T, Failure>) -> String {
    line(&match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => {
            let input = matches!(error, Failure::Input { .. });
            Reply::Error(Refusal { input, message: error.to_string() })
        }
    })
}

impl Agent {
    /// The answer to a request, one line.
    pub async fn answer(&mut self, request: Request) -> String {
        match request {
            Request::Status {} => reply(self.status().await),
            Request::EndpointList {} => reply(self.endpoints()),
            Request::EndpointGet { endpoint } => reply(self.find_endpoint(&endpoint).and_then(|id| self.endpoint(id))),
            Request::EndpointAdd { pod, netns, ifname, device } => {
                let added = self.add_endpoint(&pod, &netns, &ifname, device.as_deref()).await;
                reply(added.and_then(|id| self.endpoint(id)))
            }
            Request::EndpointDelete { endpoint } => {
                let found = self.find_endpoint(&endpoint).and_then(|id| self.endpoint(id));
                match found {
                    Ok(gone) => reply(self.remove_endpoint(gone.id).await.map(|()| gone)),
                    Err(error) => reply::<()>(Err(error)),
                }
            }
            Request::IdentityList {} => reply(Ok(self.identity_list())),
            Request::PolicyGet { endpoint } => reply(self.find_endpoint(&endpoint).and_then(|id| self.policy(id))),
            Request::IpcacheList {} => reply(self.ipcache()),
            Request::CtList {} => reply(self.flows()),
            Request::Metrics {} => reply(self.counters()),
            Request::Monitor(filter) => reply(filter.check().map_err(Failure::input)),
        }
    }
}

async fn client(
    stream: UnixStream,
    requests: &mpsc::Sender<Asked>,
    events: &broadcast::Sender<Arc<Event>>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(reader, LONGEST as u64));
    let mut text = String::new();
    loop {
        text.clear();
        reader.get_mut().set_limit(LONGEST as u64);
        if reader.read_line(&mut text).await? == 0 {
            return Ok(());
        }
        let request: Request = match serde_json::from_str(&text) {
            Ok(request) => request,
            Err(error) => {
                let refusal = Refusal { input: true, message: format!("request: {error}") };
                writer.write_all(line(&Reply::<()>::Error(refusal)).as_bytes()).await?;
                continue;
            }
        };
        // Before the answer, so that nothing is missed after it.
        let mut receiver = events.subscribe();
        let listen = if let Request::Monitor(filter) = &request { Some(filter.clone()) } else { None };
        let (answer, answered) = oneshot::channel();
        let stopped = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
        requests.send((request, answer)).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        writer.write_all(answered.await.map_err(stopped)?.as_bytes()).await?;
        if let Some(filter) = listen.filter(|filter| filter.check().is_ok()) {
            return tokio::select! {
                result = stream_events(&mut writer, &mut receiver, &filter) => result,
                // Whatever the client writes now, or its hanging up, is the end.
                _ = reader.read_line(&mut text) => Ok(()),
            };
        }
    }
}

async fn stream_events(
    writer: &mut OwnedWriteHalf,
    receiver: &mut broadcast::Receiver<Arc<Event>>,
    filter: &Filter,
) -> io::Result<()> {
    loop {
        let next = match receiver.recv().await {
            Ok(event) if filter.wants(&event) => Line::Event(Box::new((*event).clone())),
            Ok(_) => continue,
            Err(broadcast::error::RecvError::Lagged(lost)) => Line::Lost(lost),
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        };
        let text = serde_json::to_string(&next).map_err(io::Error::from)? + "\n";
        writer.write_all(text.as_bytes()).await?;
    }
}
