//! Programs that everybody knows, between pods: ping, curl, iperf3, dig. They come with their own ideas of sockets, sizes
//! and offloads, which ours do not have.
//!
//! Each is started in its pod's namespace, ends by itself within seconds or is ended, and its own output is read. One that
//! is not installed is a declared skip (`lab-tools` in `ci/skips.toml`). What they talk to is ours and small: an HTTP
//! server and a name server on threads, whose sockets are in the pod.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::place::Place;
use crate::report::Report;
use crate::wire::cluster::{self, BESIDE, FAR, NEAR, Pod};
use crate::wire::sizes::{headers, path_mtu};
use crate::wire::taps::{Found, family, note};
use crate::wire::traffic;
use crate::world::World;

/// Seconds that a program may take, as `timeout` wants them.
const SECONDS: &str = "5";
/// Bytes of a page.
const PAGE: usize = 500_000;
/// Bytes that iperf3 sends over TCP, and over UDP, where it takes 0.2 s.
const STREAM: u64 = 60_000_000;
const DATAGRAMS: u64 = 500_000;
const HTTP: u16 = 8080;
const IPERF: u16 = 5201;
const DNS: u16 = 53;
/// What our name server says to everything (RFC 5737).
const ANSWER: [u8; 4] = [192, 0, 2, 55];

/// Every program between pods of two nodes and of one, over both families.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for ipv6 in [false, true] {
        let near = cluster::pod(world, NEAR, ipv6)?;
        for name in [FAR, BESIDE] {
            let to = cluster::pod(world, name, ipv6)?;
            let (client, server) = (traffic::udp(near.place, near.address, 0)?, traffic::udp(to.place, to.address, 0)?);
            traffic::warm_up(&client, &server)?;
            client.connect(server.local_addr()?)?;
            let mtu = path_mtu(&client, ipv6)?;
            type Ask = fn(&Pod<'_>, &Pod<'_>, usize) -> Result<String>;
            let programs: [(&str, &str, Ask); 5] = [
                ("ping", "ping of every kind of size", pings),
                ("curl", "curl gets a page", curl),
                ("iperf3", "iperf3 over TCP", iperf_tcp),
                ("iperf3", "iperf3 over UDP", iperf_udp),
                ("dig", "dig asks a name server", dig),
            ];
            for (program, what, ask) in programs {
                let name = format!("{}: {} to {}: {what}", family(ipv6), near.name, to.name);
                if let Some(line) = missing(program) {
                    report.skip(line);
                    continue;
                }
                let found: Found = ask(&near, &to, mtu).map_err(|error| format!("{error:#}"));
                note(report, &name, &[], found);
            }
        }
    }
    Ok(())
}

/// A declared skip, if a program is not installed.
pub(crate) fn missing(program: &str) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    (!there).then(|| format!("skip: lab-tools: no {program}"))
}

/// A program in a place, which is ended if it does not end.
fn command(place: &Place, program: &str, arguments: &[&str]) -> Result<Command> {
    ensure!(!arguments.iter().any(|argument| argument.contains('\0')), "{}: a zero byte", place.name());
    let mut command = Command::new("timeout");
    command.args(["-k", "1", SECONDS, program]).args(arguments);
    // What it prints is read: one language, one way to write numbers.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn run(place: &Place, program: &str, arguments: &[&str]) -> Result<Output> {
    let child = {
        // A child starts in the namespace of the thread that makes it.
        let _inside = place.enter()?;
        command(place, program, arguments)?.spawn().with_context(|| format!("starting {program}"))?
    };
    Ok(child.wait_with_output()?)
}

/// As [`run`]; it must end well. What it printed.
fn good(place: &Place, program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = run(place, program, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    let words = arguments.join(" ");
    ensure!(output.status.success(), "{program} {words}: {}: {} {}", output.status, said.trim(), told.trim());
    Ok(output.stdout)
}

fn pings(from: &Pod<'_>, to: &Pod<'_>, mtu: usize) -> Result<String> {
    let address = to.address.to_string();
    // Its header is as long as that of UDP.
    let most = mtu - headers(to.address.is_ipv6());
    let ping = |size: usize, cut: &str| {
        let size = size.to_string();
        run(from.place, "ping", &["-n", "-c", "3", "-i", "0.01", "-w", "3", "-M", cut, "-s", &size, &address])
    };
    for (size, cut) in [(0, "do"), (56, "do"), (most, "do"), (most + 1, "dont"), (8000, "dont")] {
        let output = ping(size, cut)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && all_came_back(&text), "{size} bytes, -M {cut}: {text}");
    }
    let output = ping(most + 1, "do")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && too_long(&text), "{} bytes, -M do: {text}", most + 1);
    Ok(format!("0 to {most} bytes whole, 8000 in fragments"))
}

fn all_came_back(text: &str) -> bool {
    text.contains("3 packets transmitted, 3 received, 0% packet loss")
}

fn too_long(text: &str) -> bool {
    text.to_ascii_lowercase().contains("message too long")
}

fn curl(from: &Pod<'_>, to: &Pod<'_>, _mtu: usize) -> Result<String> {
    let address = SocketAddr::new(to.address, HTTP);
    let listener = {
        let _inside = to.place.enter()?;
        TcpListener::bind(address)?
    };
    let page = traffic::bytes(PAGE);
    thread::scope(|scope| {
        let server = scope.spawn(|| serve_page(&listener, &page));
        let url = format!("http://{address}/page");
        let got = good(from.place, "curl", &["-sS", "-g", "--noproxy", "*", "--max-time", "3", "--fail", &url]);
        if got.is_err() {
            // The server may still wait for somebody.
            let _inside = to.place.enter()?;
            let _ = std::net::TcpStream::connect(address);
        }
        let served = server.join().unwrap_or_else(|_| bail!("the server's thread ended early"));
        ensure!(got? == page, "it got other bytes than were served");
        served?;
        Ok(format!("{PAGE} bytes"))
    })
}

/// One request, one page (RFC 9112): no more of HTTP is needed here, so no library.
fn serve_page(listener: &TcpListener, page: &[u8]) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(traffic::PATIENCE))?;
    stream.set_write_timeout(Some(traffic::PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().context("no request")??;
    ensure!(request == "GET /page HTTP/1.1", "the request is {request:?}");
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len())?;
    stream.write_all(page)?;
    Ok(())
}

/// An iperf3 server that serves once; gone when this is dropped.
struct IperfServer(Child);

impl IperfServer {
    fn start(pod: &Pod<'_>) -> Result<Self> {
        let (address, port) = (pod.address.to_string(), IPERF.to_string());
        let arguments = ["-s", "-1", "--forceflush", "-B", &address, "-p", &port];
        let child = {
            let _inside = pod.place.enter()?;
            command(pod.place, "iperf3", &arguments)?.spawn().context("starting iperf3")?
        };
        let mut server = Self(child);
        let stdout = server.0.stdout.as_mut().context("no output of iperf3")?;
        let mut text = Vec::new();
        // Byte by byte: what comes later is not wanted here.
        while !text.ends_with(b"Server listening on") {
            let mut byte = [0];
            ensure!(stdout.read(&mut byte)? == 1, "iperf3 -s: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&byte);
        }
        Ok(server)
    }
}

impl Drop for IperfServer {
    fn drop(&mut self) {
        // `timeout` hands the signal on; it may have ended by itself.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn iperf(from: &Pod<'_>, to: &Pod<'_>, more: &[&str]) -> Result<Value> {
    let _server = IperfServer::start(to)?;
    let (address, port) = (to.address.to_string(), IPERF.to_string());
    let mut arguments = vec!["-c", &address, "-p", &port, "-J", "--connect-timeout", "2000"];
    arguments.extend_from_slice(more);
    Ok(serde_json::from_slice(&good(from.place, "iperf3", &arguments)?)?)
}

fn iperf_tcp(from: &Pod<'_>, to: &Pod<'_>, _mtu: usize) -> Result<String> {
    let result = iperf(from, to, &["-n", &STREAM.to_string()])?;
    let (sent, received, rate) = stream(&result)?;
    // When the sender is done, iperf3's receiver counts no more: what waits in its socket's queue is missing.
    ensure!(sent >= STREAM && received >= STREAM / 2, "{sent} of {STREAM} bytes were sent, {received} counted");
    Ok(format!("{:.1} Gbit/s", rate / 1e9))
}

/// Bytes that were sent, that arrived, and of these bits per second.
fn stream(result: &Value) -> Result<(u64, u64, f64)> {
    let [sent, received] = ["sum_sent", "sum_received"].map(|name| &result["end"][name]);
    let bytes = sent["bytes"].as_u64().zip(received["bytes"].as_u64());
    let (sent, arrived) = bytes.with_context(|| format!("iperf3 says {}", result["end"]))?;
    Ok((sent, arrived, received["bits_per_second"].as_f64().unwrap_or_default()))
}

fn iperf_udp(from: &Pod<'_>, to: &Pod<'_>, mtu: usize) -> Result<String> {
    let length = (mtu - headers(to.address.is_ipv6())).to_string();
    let result = iperf(from, to, &["-u", "-b", "20M", "-l", &length, "-n", &DATAGRAMS.to_string()])?;
    let (packets, lost) = datagrams(&result)?;
    // A busy machine may be late for some.
    ensure!(packets >= DATAGRAMS / 1500 && lost * 100 <= packets, "{lost} of {packets} datagrams were lost");
    Ok(format!("{packets} datagrams of {length} bytes, {lost} lost"))
}

/// Datagrams that were sent, and those of them that were lost.
fn datagrams(result: &Value) -> Result<(u64, u64)> {
    let sum = &result["end"]["sum"];
    let counts = sum["packets"].as_u64().zip(sum["lost_packets"].as_u64());
    counts.with_context(|| format!("iperf3 says {}", result["end"]))
}

fn dig(from: &Pod<'_>, to: &Pod<'_>, _mtu: usize) -> Result<String> {
    let server = traffic::udp(to.place, to.address, DNS)?;
    let at = format!("@{}", to.address);
    let answer = IpAddr::from(ANSWER).to_string();
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve_name(&server));
        let text = good(from.place, "dig", &[&at, "+short", "+tries=1", "+time=3", "name.example", "A"]);
        let served = serving.join().unwrap_or_else(|_| bail!("the server's thread ended early"));
        let text = String::from_utf8(text?)?;
        ensure!(text.trim() == answer, "it got {text:?}");
        served?;
        Ok(answer.clone())
    })
}

/// Answers one question, whatever it is, with [`ANSWER`] (RFC 1035, section 4).
fn serve_name(server: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 1232];
    let (len, from) = server.recv_from(&mut buffer).context("no question")?;
    let answer = name_answer(buffer.get(..len).unwrap_or_default()).context("a question that cannot be read")?;
    server.send_to(&answer, from)?;
    Ok(())
}

fn name_answer(question: &[u8]) -> Option<Vec<u8>> {
    // Behind the header: labels up to an empty one, type, class.
    let name = question.get(12..)?.iter().position(|byte| *byte == 0)?;
    let section = question.get(12..12 + name + 5)?;
    let mut answer = question.get(..2)?.to_vec();
    // A response, recursion as asked for; one question, one answer.
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend_from_slice(section);
    // The name of the question, type A, class IN, a minute, four bytes.
    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend_from_slice(&ANSWER);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_programs_print_is_read() {
        assert!(all_came_back("3 packets transmitted, 3 received, 0% packet loss, time 20ms"));
        assert!(!all_came_back("3 packets transmitted, 2 received, 33.3333% packet loss, time 20ms"));
        assert!(!all_came_back("3 packets transmitted, 3 received, +1 errors, 0% packet loss, time 20ms"));
        assert!(too_long("ping: local error: Message too long, mtu: 1450"));
        assert!(!too_long("ping: sendmsg: Operation not permitted"));
        let tcp = json!({"end": {"sum_sent": {"bytes": 9}, "sum_received": {"bytes": 7, "bits_per_second": 8.5}}});
        assert_eq!(stream(&tcp).unwrap(), (9, 7, 8.5));
        let udp = json!({"end": {"sum": {"packets": 9, "lost_packets": 2}}});
        assert_eq!(datagrams(&udp).unwrap(), (9, 2));
        assert!(stream(&json!({"error": "unable to connect"})).is_err());
        assert!(datagrams(&json!({"end": {}})).is_err());
    }

    #[test]
    fn a_name_is_answered_with_the_question_in_front() {
        let question = *b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x01a\x02bc\0\0\x01\0\x01and options";
        let answer = name_answer(&question).unwrap();
        assert_eq!(answer[..12], *b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0");
        assert_eq!(answer[12..22], *b"\x01a\x02bc\0\0\x01\0\x01");
        assert!(answer.ends_with(&ANSWER));
        assert!(name_answer(&question[..12]).is_none());
    }

    #[test]
    fn a_program_that_is_not_there_is_a_declared_skip() {
        assert_eq!(missing("sh"), None);
        assert_eq!(missing("no-such-program").as_deref(), Some("skip: lab-tools: no no-such-program"));
    }
}
