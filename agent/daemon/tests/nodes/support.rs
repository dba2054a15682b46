//! One node and its pods, each a network namespace of its own, removed on drop; and the agent as a process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a connection that is dropped is waited for.
const DROPPED: Duration = Duration::from_millis(400);
/// How long one that is allowed may take: the first IPv6 packet of a device waits up to a second.
pub const ALLOWED: Duration = Duration::from_secs(5);

/// Prints the skip line where there is no root.
pub fn skipped() -> bool {
    let line = datapath_kernel::skip_line();
    if let Some(line) = &line {
        println!("{line}");
    }
    line.is_some()
}

/// Runs a command that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// A network namespace with a name.
pub struct Namespace {
    pub name: String,
    pub path: PathBuf,
}

impl Namespace {
    pub fn new(name: String) -> Self {
        // Of an earlier run that was killed.
        let _ = Command::new("ip").args(["netns", "delete", &name]).stderr(Stdio::null()).status();
        run("ip", &["netns", "add", &name]);
        let path = Path::new("/var/run/netns").join(&name);
        Self { name, path }
    }

    /// Does something inside, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).unwrap();
        std::thread::scope(|scope| {
            let enter = || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// What a command prints inside.
    pub fn shows(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.inside(|| Command::new(program).args(arguments).output().unwrap());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Bytes of an IP packet on a device.
    pub fn mtu(&self, device: &str) -> u32 {
        let link = self.shows("ip", &["-o", "link", "show", device]);
        link.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap().parse().unwrap()
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(|| TcpListener::bind(address).unwrap())
    }

    pub fn connect(&self, to: SocketAddr, within: Duration) -> std::io::Result<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&to, within))
    }

    /// A connection that must be possible, and the server's end of it.
    pub fn reach(&self, server: &TcpListener) -> (TcpStream, TcpStream) {
        let client = self.connect(server.local_addr().unwrap(), ALLOWED).unwrap();
        let (server, _) = server.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(ALLOWED)).unwrap();
        }
        (client, server)
    }

    /// A connection that must not be possible.
    pub fn fails_to_reach(&self, server: &TcpListener) {
        let error = self.connect(server.local_addr().unwrap(), DROPPED).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Bytes go there and come back.
pub fn echo((client, server): &mut (TcpStream, TcpStream)) {
    client.write_all(b"there").unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    server.write_all(b"back!").unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"back!");
}

/// Sets a flag when it goes, also by a panic: threads of a scope that wait for it then end.
pub struct Ends<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Lets this much time go by.
pub fn pause(time: Duration) {
    let (mut never, _other) = UnixStream::pair().unwrap();
    never.set_read_timeout(Some(time)).unwrap();
    // A process that is stopped and goes on is interrupted: then it waits anew.
    while never.read(&mut [0]).unwrap_err().kind() != std::io::ErrorKind::WouldBlock {}
}

/// The node of [`Node::new`].
pub const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

/// Pod `x/NAME` of that node, 10.244.1.LAST.
pub fn pod(name: &str, last: u8) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: x, labels: {{app: {name}}}}}
spec: {{nodeName: n1, containers: [{{name: c, image: i}}]}}
status: {{podIPs: [{{ip: 10.244.1.{last}}}, {{ip: 'fd00:10:244:1::{last}'}}]}}
"
    )
}

/// Nothing may reach `x/b`.
pub const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}
";

/// A node and two pods of it.
pub struct Lab {
    pub node: Node,
    pub a: Namespace,
    pub b: Namespace,
}

/// A node whose agent runs with these settings, and pods `x/a` and `x/b`, connected.
pub fn lab(prefix: &str, settings: &str) -> Lab {
    let prefix = format!("{prefix}-{}", std::process::id());
    let (a, b) = (Namespace::new(format!("{prefix}-a")), Namespace::new(format!("{prefix}-b")));
    let mut node = Node::new(&prefix);
    node.configure(settings);
    node.write("cluster.yaml", &[NODE, &pod("a", 5), &pod("b", 6)].concat());
    node.start();
    node.add("x/a", &a);
    node.add("x/b", &b);
    Lab { node, a, b }
}

/// A node with its files; its agent may run or not.
pub struct Node {
    pub namespace: Namespace,
    pub folder: tempfile::TempDir,
    pub bpffs: PathBuf,
    name: String,
    agent: Option<(Child, BufReader<ChildStderr>)>,
}

impl Node {
    /// A node `n1` of its own.
    pub fn new(prefix: &str) -> Self {
        let node = Self::named(prefix, "n1", "");
        node.namespace.inside(|| {
            run("ip", &["link", "add", "wire", "type", "veth", "peer", "name", "away"]);
            run("ip", &["address", "add", "192.0.2.1/24", "dev", "wire"]);
            run("ip", &["link", "set", "wire", "up"]);
            run("ip", &["link", "set", "away", "up"]);
        });
        node
    }

    /// A node without devices to others, with more settings.
    pub fn named(prefix: &str, name: &str, more: &str) -> Self {
        let namespace = Namespace::new(format!("{prefix}-{name}"));
        namespace.inside(|| run("ip", &["link", "set", "lo", "up"]));
        let folder = tempfile::tempdir().unwrap();
        let bpffs = Path::new("/sys/fs/bpf").join(format!("{prefix}-{name}"));
        std::fs::create_dir(folder.path().join("objects")).unwrap();
        let node = Self { namespace, folder, bpffs, name: name.to_owned(), agent: None };
        node.configure(more);
        node
    }

    /// Two nodes, `n1` and `n2`, 192.0.2.1 and .2, 2001:db8::1 and ::2, on one wire.
    pub fn pair(prefix: &str, more: &str) -> [Self; 2] {
        let pair = ["n1", "n2"].map(|name| Self::named(prefix, name, more));
        Self::connect(&pair);
        pair
    }

    /// Lays the wire between two nodes.
    pub fn connect([one, two]: &[Self; 2]) {
        let other = &two.namespace.name;
        one.namespace.inside(|| {
            run("ip", &["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other]);
        });
        for (node, last) in [(one, 1), (two, 2)] {
            node.namespace.inside(|| {
                run("ip", &["address", "add", &format!("192.0.2.{last}/24"), "dev", "wire"]);
                run("ip", &["address", "add", &format!("2001:db8::{last}/64"), "dev", "wire", "nodad"]);
                run("ip", &["link", "set", "wire", "up"]);
            });
        }
    }

    /// Writes the settings: those of every test, and these.
    pub fn configure(&self, more: &str) {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let settings = format!(
            "node = '{}'\ndirectory = '{}'\nstate = '{}'\nsocket = '{}'\nbpffs = '{}'\nflows = 4096\n{more}\n",
            self.name,
            path("objects"),
            path("state"),
            path("socket"),
            self.bpffs.display()
        );
        std::fs::write(path("weir.toml"), settings).unwrap();
    }

    /// What a command prints in the node's namespace.
    pub fn shows(&self, program: &str, arguments: &[&str]) -> String {
        self.namespace.shows(program, arguments)
    }

    /// Writes a file of objects at once, as a rename.
    pub fn write(&self, name: &str, text: &str) {
        let folder = self.folder.path();
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::rename(folder.join(name), folder.join("objects").join(name)).unwrap();
    }

    pub fn delete(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join("objects").join(name)).unwrap();
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.env("WEIR_LOG", "agent::agent=debug,agent=info");
        command.arg(format!("--net={}", self.namespace.path.display())).arg(env!("CARGO_BIN_EXE_weir-agent"));
        command.arg("--config").arg(self.folder.path().join("weir.toml"));
        command
    }

    /// Starts the agent.
    pub fn spawn(&mut self) {
        self.run(self.command());
    }

    /// Starts the agent by this command.
    pub fn run(&mut self, mut command: Command) {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        self.agent = Some((child, stderr));
    }

    /// Starts the agent and waits for its first pass.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_for("maps are as the objects say");
    }

    /// Waits until the agent says this.
    pub fn wait_for(&mut self, text: &str) -> String {
        let (_, stderr) = self.agent.as_mut().unwrap();
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the agent stopped:\n{all}");
            if line.contains(text) {
                return line;
            }
            all.push_str(&line);
        }
    }

    /// Asks for the agent's status until it is so, for some seconds.
    pub fn until(&self, what: &str, so: impl Fn(&serde_json::Value) -> bool) {
        let mut last = serde_json::Value::Null;
        for _ in 0..500 {
            last = self.ask(r#"{"request":"status"}"#);
            if so(&last["ok"]) {
                return;
            }
            pause(Duration::from_millis(20));
        }
        assert!(so(&last["ok"]), "{what}: {last}");
    }

    /// The agent's process.
    pub fn id(&self) -> u32 {
        self.agent.as_ref().unwrap().0.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let (mut child, _) = self.agent.take().unwrap();
        // It may be dead already.
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// SIGTERM; the agent must stop as it should.
    pub fn stop(&mut self) {
        let (mut child, mut stderr) = self.agent.take().unwrap();
        run("kill", &["-TERM", &child.id().to_string()]);
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
        assert!(text.contains("traffic and policy go on"), "{text}");
    }

    /// Asks for an endpoint, whatever comes of it.
    pub fn try_to_add(&self, pod: &str, namespace: &Namespace) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(self.folder.path().join("socket"))?;
        let path = namespace.path.display();
        writeln!(stream, "{{\"request\":\"endpoint-add\",\"pod\":\"{pod}\",\"netns\":\"{path}\"}}")
    }

    /// Whether the agent says that both pods are connected.
    pub fn answers(&self) -> bool {
        let connected = || {
            let mut stream = UnixStream::connect(self.folder.path().join("socket")).ok()?;
            stream.set_read_timeout(Some(ALLOWED)).ok()?;
            writeln!(stream, r#"{{"request":"status"}}"#).ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            let status: serde_json::Value = serde_json::from_str(&line).ok()?;
            Some(status["ok"]["endpoints"] == serde_json::json!([2, 2]))
        };
        connected().unwrap_or(false)
    }

    pub fn client(&self) -> Client {
        let stream = UnixStream::connect(self.folder.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(ALLOWED)).unwrap();
        Client(BufReader::new(stream))
    }

    /// The answer to one request.
    pub fn ask(&self, request: &str) -> serde_json::Value {
        let mut client = self.client();
        client.send(request);
        client.line()
    }

    pub fn add(&self, pod: &str, namespace: &Namespace) -> serde_json::Value {
        let path = namespace.path.display();
        let reply = self.ask(&format!("{{\"request\":\"endpoint-add\",\"pod\":\"{pod}\",\"netns\":\"{path}\"}}"));
        assert!(reply["ok"]["id"].is_number(), "{reply}");
        reply["ok"].clone()
    }

    pub fn cleanup(&self) {
        let output = self.command().arg("--cleanup").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
        let _ = self.command().arg("--cleanup").stderr(Stdio::null()).status();
    }
}

/// A connection to the agent's socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    pub fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}
