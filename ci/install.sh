#!/usr/bin/env bash
# Installs what building the eBPF object needs and this machine lacks; a second run does nothing.
# Users need none of it: the object is committed, and `cargo test` needs rustup alone.
set -euo pipefail
cd "$(dirname "$0")/.."

LLVM=22
LINKER_VERSION=0.13.0

say() { printf 'install: %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_install() {
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here: please install by hand: $*"
        return 1
    fi
    say "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null && return
    as_root apt-get update -qq
    as_root apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

if ! command -v rustup >/dev/null; then
    say "rustup is missing: see https://rustup.rs"
    exit 1
fi

if ! rustc --version >/dev/null 2>&1; then
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    say "rustup toolchain install $channel"
    rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy
fi

packages=()
command -v cc >/dev/null || packages+=(gcc libc6-dev)
command -v git >/dev/null || packages+=(git)
command -v ip >/dev/null || packages+=(iproute2)
# Labs try these beside our own sockets.
command -v ping >/dev/null || packages+=(iputils-ping)
command -v curl >/dev/null || packages+=(curl)
command -v iperf3 >/dev/null || packages+=(iperf3)
command -v dig >/dev/null || packages+=(dnsutils)
command -v tshark >/dev/null || packages+=(tshark)
# llvm-objcopy, and what bpf-linker is linked against.
[ -x "/usr/lib/llvm-$LLVM/bin/llvm-objcopy" ] || packages+=("llvm-$LLVM")
if ! bpf-linker --version 2>/dev/null | grep -qF " $LINKER_VERSION"; then
    linker=missing
    [ -x "/usr/lib/llvm-$LLVM/bin/llvm-config" ] || packages+=("llvm-$LLVM-dev")
    command -v c++ >/dev/null || packages+=(g++)
fi
[ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"

# The sources of `core`: only the object's build needs them.
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library/core" ]; then
    say "rustup component add rust-src"
    rustup component add rust-src
fi

if [ "${linker:-}" = missing ]; then
    say "cargo install bpf-linker $LINKER_VERSION"
    LLVM_PREFIX="/usr/lib/llvm-$LLVM" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/bpf-linker" \
        cargo install bpf-linker --version "$LINKER_VERSION" --locked --no-default-features --features "llvm-$LLVM"
fi
say "everything is there"
