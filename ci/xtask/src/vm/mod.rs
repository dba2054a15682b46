//! `cargo xtask vm --kernel 6.1 -- COMMAND`: runs a command as root on another kernel, in a guest whose file system is this
//! machine's, below a layer that is thrown away. Nothing is installed, nothing of the machine is written.

mod catalogue;
mod initramfs;
mod machine;
mod store;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use catalogue::{Catalogue, Kernel};
use initramfs::{Archive, Modules, quoted};
use machine::{Accelerator, End, Plan, Programs};
use store::Store;

/// How long KVM, where there is any, has to show that it can boot the kernel.
const KVM_TRIAL: Duration = Duration::from_secs(25);

/// Variables that a command in a guest gets from here, beside those that begin so.
const PASSED: [&str; 6] = ["HOME", "LANG", "NO_COLOR", "PATH", "TERM", "TMPDIR"];
const PASSED_BEGIN: [&str; 4] = ["CARGO_", "PROPTEST_", "RUST_", "WEIR_"];

/// Run a command on another kernel, in a QEMU guest
///
/// The guest sees this machine's files as they are, in the same places; what it writes is gone when it ends. The command
/// runs as root in the current folder, with its output here; its exit code is this command's. Kernels and, where they are
/// missing, QEMU and virtiofsd are Debian's packages, kept below $XDG_CACHE_HOME/weir (~/.cache/weir). Needs root, for
/// virtiofsd.
#[derive(Args)]
pub struct Vm {
    /// Name of the kernel in ci/kernels/kernels.toml
    #[arg(long, required_unless_present_any = ["list", "lock"])]
    kernel: Option<String>,
    /// List the kernels
    #[arg(long, conflicts_with_all = ["kernel", "lock"])]
    list: bool,
    /// Write ci/kernels/packages.lock anew from what the archive has (needs apt and Debian's keys)
    #[arg(long, conflicts_with = "kernel")]
    lock: bool,
    /// Seconds that the command may take
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Seconds that the guest may take to boot
    #[arg(long, default_value_t = 180)]
    boot_timeout: u64,
    /// Memory of the guest, MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Processors of the guest; with more than one, emulated kernels now and then run into an instruction that another
    /// processor is just rewriting, and panic
    #[arg(long, default_value_t = 1)]
    processors: u32,
    /// The command
    #[arg(last = true, required_unless_present_any = ["list", "lock"])]
    command: Vec<String>,
}

/// Does it; the exit code is the command's, 124 if it took too long.
pub fn run(root: &Path, vm: &Vm) -> Result<ExitCode> {
    let catalogue = Catalogue::read(root)?;
    if vm.list {
        for (name, kernel) in &catalogue.kernels {
            println!("{name:<6} {}", kernel.release);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if vm.lock {
        catalogue::write_lock(root, &catalogue)?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = vm.kernel.as_deref().context("no kernel")?;
    let guest = Guest::prepare(root, &catalogue, name)?;
    guest.run(vm)
}

/// Everything a guest is made of.
struct Guest {
    name: String,
    image: PathBuf,
    modules: PathBuf,
    release: String,
    busybox: PathBuf,
    programs: Programs,
    store: Store,
}

impl Guest {
    fn prepare(root: &Path, catalogue: &Catalogue, name: &str) -> Result<Self> {
        let kernel = catalogue.kernel(name)?;
        let store = Store::open(catalogue, catalogue::lock(root)?)?;
        let busybox = store.tree("busybox", |_| Ok(()))?.join("bin/busybox");
        let tree = store.tree(name, |tree| index_modules(tree, kernel, &busybox))?;
        let modules = modules_of(&tree, kernel)?;
        let images = [tree.join("boot").join(format!("vmlinuz-{}", kernel.release)), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file());
        let image = image.with_context(|| format!("no kernel in {}", tree.display()))?;
        let programs = programs(&store)?;
        Ok(Self { name: name.to_owned(), image, modules, release: kernel.release.clone(), busybox, programs, store })
    }

    fn run(&self, vm: &Vm) -> Result<ExitCode> {
        let initramfs = self.initramfs(&vm.command)?;
        let plan = |accelerator, boot| Plan {
            programs: &self.programs,
            kernel: &self.image,
            initramfs: &initramfs,
            accelerator,
            memory: vm.memory,
            processors: vm.processors,
            boot,
            command: Duration::from_secs(vm.timeout),
        };
        let boot = Duration::from_secs(vm.boot_timeout);
        let mut attempts = vec![plan(Accelerator::Tcg, boot), plan(Accelerator::Tcg, boot)];
        let kvm_fails = self.store.note(&format!("no-kvm-{}", boot_id()));
        if Path::new("/dev/kvm").exists() && !kvm_fails.exists() {
            attempts.insert(0, plan(Accelerator::Kvm, boot.min(KVM_TRIAL)));
        }
        for attempt in &attempts {
            match machine::run(attempt)? {
                End::Exit(code) => return Ok(ExitCode::from(code)),
                End::TimeOut => {
                    eprintln!("vm: the command took longer than {} s on {}", vm.timeout, self.name);
                    return Ok(ExitCode::from(124));
                }
                End::Died(console) => bail!("the guest ({}) died while it ran the command:\n{console}", self.name),
                End::NoBoot(why, _) if attempt.accelerator == Accelerator::Kvm => {
                    eprintln!("vm: KVM does not boot {}, trying without: {}", self.name, why.trim());
                    fs::write(&kvm_fails, why).with_context(|| format!("writing {}", kvm_fails.display()))?;
                }
                End::NoBoot(why, console) => eprintln!("vm: {} did not boot: {why}\n{console}", self.name),
            }
        }
        bail!("{} did not boot", self.name)
    }

    fn initramfs(&self, command: &[String]) -> Result<Vec<u8>> {
        let mut archive = Archive::new()?;
        let busybox = fs::read(&self.busybox).with_context(|| format!("reading {}", self.busybox.display()))?;
        archive.file("weir/busybox", 0o755, &busybox)?;
        archive.file("weir/start", 0o755, include_bytes!("start.sh"))?;
        archive.file("init", 0o755, include_bytes!("init.sh"))?;
        archive.file("weir/command", 0o644, self.script(command)?.as_bytes())?;
        Modules::read(&self.modules)?.add_to(&mut archive)?;
        archive.finish()
    }

    /// Two parts, as `$1` says: what `start` must know, and the command.
    fn script(&self, command: &[String]) -> Result<String> {
        let modules = self.modules.canonicalize().with_context(|| format!("finding {}", self.modules.display()))?;
        let mut script = format!("release={}\nmodules={}\n", quoted(&self.release), quoted(&text(&modules)?));
        script += "if [ \"$1\" = run ]; then\n";
        for (name, value) in env::vars() {
            if PASSED.contains(&name.as_str()) || PASSED_BEGIN.iter().any(|begin| name.starts_with(begin)) {
                script += &format!("export {name}={}\n", quoted(&value));
            }
        }
        script += "export PATH=\"$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin\"\n";
        script += &format!("cd {} || exit 126\n", quoted(&text(&env::current_dir()?)?));
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        // Through `env`: the shell would take busybox's own `ip` for the machine's.
        script += &format!("exec /usr/bin/env -- {}\nfi\n", words.join(" "));
        Ok(script)
    }
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Differs from one boot of this machine to the next: what KVM cannot do today it may do tomorrow.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Modules lie in `lib/modules`, or, since Debian 13, in `usr/lib/modules`.
fn modules_of(tree: &Path, kernel: &Kernel) -> Result<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .map(|folder| tree.join(folder).join(&kernel.release))
        .into_iter()
        .find(|folder| folder.is_dir())
        .with_context(|| format!("{} has no modules of {}", tree.display(), kernel.release))
}

/// Unpacks compressed modules and writes their index: packages leave that to their installation.
fn index_modules(tree: &Path, kernel: &Kernel, busybox: &Path) -> Result<()> {
    let modules = modules_of(tree, kernel)?;
    let mut compressed = Vec::new();
    let mut folders = vec![modules.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "xz") {
                compressed.push(entry.path());
            }
        }
    }
    for some in compressed.chunks(200) {
        store::run(Command::new("xz").arg("--decompress").args(some))?;
    }
    if !tree.join("lib/modules").is_dir() {
        fs::create_dir_all(tree.join("lib"))?;
        std::os::unix::fs::symlink("../usr/lib/modules", tree.join("lib/modules"))?;
    }
    store::run(Command::new(busybox).args(["depmod", "-b"]).arg(tree).arg(&kernel.release))
}

/// The machine's qemu and virtiofsd, or Debian's.
fn programs(store: &Store) -> Result<Programs> {
    let share = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].into_iter().find(|path| Path::new(path).exists());
    let installed =
        Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|said| said.status.success());
    if let (Some(share), true) = (share, installed) {
        return Ok(Programs {
            qemu: vec!["qemu-system-x86_64".to_owned()],
            qemu_environment: Vec::new(),
            virtiofsd: vec![share.to_owned()],
        });
    }
    let tree = store.tree("qemu", |_| Ok(()))?;
    let library = text(&tree.join("usr/lib/x86_64-linux-gnu"))?;
    // With its own C library, so that any machine's will do.
    let with_loader = |program: &str| -> Result<Vec<String>> {
        let loader = text(&tree.join("lib64/ld-linux-x86-64.so.2"))?;
        let path = format!("{library}:{}", text(&tree.join("lib/x86_64-linux-gnu"))?);
        Ok(vec![loader, "--library-path".to_owned(), path, text(&tree.join(program))?])
    };
    let mut qemu = with_loader("usr/bin/qemu-system-x86_64")?;
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        qemu.extend(["-L".to_owned(), text(&tree.join(folder))?]);
    }
    Ok(Programs {
        qemu,
        qemu_environment: vec![("QEMU_MODULE_DIR".to_owned(), format!("{library}/qemu"))],
        virtiofsd: with_loader("usr/lib/qemu/virtiofsd")?,
    })
}
