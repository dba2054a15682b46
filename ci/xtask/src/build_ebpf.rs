//! Compiles `datapath/ebpf`. The same sources give the same bytes in any folder: every path that could reach the debug
//! information is mapped, DWARF is removed, and BTF with its line information stays.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use datapath_bytecode::sources;

const TARGET: &str = "bpfel-unknown-none";

/// Builds, and writes or compares.
pub fn run(check: bool) -> Result<()> {
    let root = workspace()?;
    let built = compile(&root)?;
    let object = root.join("datapath/bytecode/weir.o");
    let stamp = root.join("datapath/bytecode/weir.o.sources");
    let hash = sources::hash(&root)?;
    if check {
        let committed = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
        ensure!(
            committed == built,
            "{} ({} bytes) is not what its sources give ({} bytes): run `cargo xtask build-ebpf` and commit",
            object.display(),
            committed.len(),
            built.len()
        );
        println!("{}: {} bytes, as its sources give", object.display(), built.len());
        return Ok(());
    }
    fs::write(&object, &built).with_context(|| format!("writing {}", object.display()))?;
    fs::write(&stamp, format!("{hash}\n")).with_context(|| format!("writing {}", stamp.display()))?;
    println!("{}: {} bytes, sources {hash}", object.display(), built.len());
    Ok(())
}

fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("the workspace is two folders above this crate")?;
    root.canonicalize().with_context(|| format!("finding {}", root.display()))
}

fn compile(root: &Path) -> Result<Vec<u8>> {
    let crate_dir = root.join("datapath/ebpf");
    let target_dir = root.join("target/ebpf");
    let sysroot = output(Command::new("rustc").current_dir(root).args(["--print", "sysroot"]))?;
    let cargo_home = match env::var("CARGO_HOME") {
        Ok(home) => home,
        Err(_) => format!("{}/.cargo", env::var("HOME").context("neither CARGO_HOME nor HOME is set")?),
    };
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Otherwise every memset, of 3 bytes too, becomes a call of a byte loop.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        format!("--remap-path-prefix={}/registry/src/{}=/registry", cargo_home, registry(&cargo_home)?),
        format!("--remap-path-prefix={}=/sysroot", sysroot.trim()),
        format!("--remap-path-prefix={}=/weir", root.display()),
    ];
    let status = Command::new("cargo")
        .current_dir(&crate_dir)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the eBPF build failed (is everything of ci/install.sh installed?)");
    let linked = target_dir.join(TARGET).join("release/weir");
    let stripped = target_dir.join("weir.o");
    let objcopy = tool("objcopy")?;
    let names = output(Command::new(tool("nm")?).args(["--format=just-symbols"]).arg(&linked))?;
    let mut command = Command::new(&objcopy);
    command.args(["--strip-debug", "--remove-section=.debug_*"]);
    for name in names.lines().filter(|name| name.starts_with("_R")) {
        command.arg(format!("--redefine-sym={name}={}", without_hashes(name)));
    }
    let status = command.arg(&linked).arg(&stripped).status().with_context(|| format!("starting {objcopy}"))?;
    ensure!(status.success(), "{objcopy} failed");
    fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))
}

/// Folder of the registry's sources: its name holds a hash of the registry's address.
fn registry(cargo_home: &str) -> Result<String> {
    let sources = Path::new(cargo_home).join("registry/src");
    let mut names: Vec<String> = fs::read_dir(&sources)
        .with_context(|| format!("reading {}", sources.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next().with_context(|| format!("{} is empty", sources.display()))
}

/// A mangled name without the hashes of crates (`Cs…_` before a crate's name), which depend on the folder they were
/// compiled in. The functions are local: nobody looks their names up.
fn without_hashes(name: &str) -> String {
    let mut clean = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once("Cs") {
        clean.push_str(before);
        clean.push('C');
        rest = match after.split_once('_') {
            Some((hash, rest)) if hash.bytes().all(|byte| byte.is_ascii_alphanumeric()) => rest,
            Some(_) | None => {
                clean.push('s');
                after
            }
        };
    }
    clean + rest
}

/// One of LLVM's tools.
fn tool(tool: &str) -> Result<String> {
    for name in [format!("llvm-{tool}-22"), format!("/usr/lib/llvm-22/bin/llvm-{tool}"), format!("llvm-{tool}")] {
        if Command::new(&name).arg("--version").output().is_ok_and(|output| output.status.success()) {
            return Ok(name);
        }
    }
    bail!("llvm-{tool} of LLVM 22 is missing: apt-get install llvm-22")
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().context("starting rustc")?;
    ensure!(output.status.success(), "{command:?} failed");
    String::from_utf8(output.stdout).context("output of rustc")
}

#[cfg(test)]
mod tests {
    use super::without_hashes;

    #[test]
    fn names_do_not_tell_where_they_were_compiled() {
        let name = "_RINvNtCsfDMKga9PfFG_4weir6tables11write_eventNtNtCs18bjL6eaibv_13datapath_core6family2V4EB4_";
        let clean = "_RINvNtC4weir6tables11write_eventNtNtC13datapath_core6family2V4EB4_";
        assert_eq!(without_hashes(name), clean);
        assert_eq!(without_hashes("from_container"), "from_container");
    }
}
