#!/usr/bin/env bash
# The one entry of CI, and of anyone who wants to know whether a change is good.
#
#   ci/run.sh            every stage, in order; stops at the first that fails
#   ci/run.sh STAGE…     only these
#   ci/run.sh --all-kernels [STAGE…]   stage `vm` on every kernel of ci/kernels, not only on one
#   ci/run.sh --list     names the stages
#
# Logs of the stages are in target/ci. The last line is `N passed, N failed`: tests, and one for each other stage.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export RUST_LIB_BACKTRACE=0 CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}" CARGO_INCREMENTAL=0 PROPTEST_DISABLE_FAILURE_PERSISTENCE=1
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
logs="$CARGO_TARGET_DIR/ci"
example=examples/bookshop

# --- stages -----------------------------------------------------------------------------------------------------------

install() { ci/install.sh; }

fmt() {
    cargo fmt --all --check
    cargo fmt --check --manifest-path datapath/ebpf/Cargo.toml
}

clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

tidy() { cargo xtask tidy; }

# The README's command. As root (here: through sudo, if it asks nothing) the kernel's tests run too.
tests() {
    if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then
        export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -n -E"
    fi
    cargo test --locked --no-fail-fast -- --show-output
}

# What tests did not do is declared, and the reasons are checked.
skips() {
    local seen=("$logs/tests.log") stage
    for stage in labs kills vm; do
        case " ${stages[*]} " in *" $stage "*) seen+=("$logs/$stage.log") ;; esac
    done
    cargo xtask skips "${seen[@]}"
}

# The committed object is what its sources give, here and in any other folder.
object() {
    cargo xtask build-ebpf --check
    local copy
    copy=$(mktemp -d "${TMPDIR:-/tmp}/weir-XXXXXX")
    # shellcheck disable=SC2064 # now, not later
    trap "rm -rf '$copy'" EXIT
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- --ignore-failed-read \
        --warning=no-failed-read | tar --extract --directory="$copy"
    (cd "$copy" && env -u CARGO_TARGET_DIR cargo xtask build-ebpf --check)
}

# The README's other command.
matrix() { cargo run --locked --release -p simulator -- matrix "$example"; }

# The same random packets through every engine; the kernel, which is slower, gets fewer.
fuzz() {
    local run=(cargo run --locked --release -p simulator -- fuzz --out "$logs/fuzz-difference.toml")
    "${run[@]}" --packets 200000 --seed 1
    if [ "$(id -u)" = 0 ]; then
        "${run[@]}" --packets 5000 --seed 2 --engines checked,kernel
    fi
}

# A million flows through random clusters on the bytecode, against a reading of the API texts.
oracle() {
    WEIR_CLUSTERS=1800 cargo test --locked --release -p conformance --test policy_packets -- --nocapture packets
}

# Every lab: real agents and sockets in network namespaces, beside the simulator. As root; `list` says what else is missing.
labs() {
    local lab=(cargo run --locked --release -p netns-lab --)
    if [ "$(id -u)" = 0 ]; then
        "${lab[@]}"
    elif sudo -n true 2>/dev/null; then
        cargo build --locked --release -p netns-lab
        sudo -n -E "$CARGO_TARGET_DIR/release/netns-lab"
    else
        "${lab[@]}" list
        echo "skip: kernel-bpf: not root"
    fi
}

# The agent's first start, killed at 100 moments; the next start heals it.
kills() {
    if [ "$(id -u)" = 0 ]; then
        WEIR_KILLS=100 cargo test --locked -p agent --test nodes kills:: -- --show-output
    fi
}

# Another kernel, in a guest: the verifier's numbers, packet scenarios on the kernel, labs. With --all-kernels on each.
# WEIR_KERNELS names others.
read -ra kernels <<<"${WEIR_KERNELS:-6.1}"
vm() {
    local as=() kernel failed=0
    if [ "$(id -u)" != 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "skip: kernel-bpf: not root"
            return
        fi
        as=(sudo -n -E)
    fi
    cargo build --locked --release -p netns-lab -p simulator
    cargo build --locked -p xtask
    for kernel in "${kernels[@]}"; do
        printf '\n--- kernel %s\n' "$kernel"
        "${as[@]}" "$CARGO_TARGET_DIR/debug/xtask" vm --kernel "$kernel" --timeout 1200 -- \
            ci/kernels/guest.sh "$CARGO_TARGET_DIR/release" two-nodes impaired || failed=1
    done
    return "$failed"
}

all=(install fmt clippy tidy tests object matrix fuzz oracle labs kills vm skips)

# --- running them -----------------------------------------------------------------------------------------------------

if [ "${1:-}" = --list ]; then
    printf '%s\n' "${all[@]}"
    exit
fi
if [ "${1:-}" = --all-kernels ]; then
    shift
    mapfile -t kernels < <(sed -n 's/^\[kernels\."\(.*\)"\]$/\1/p' ci/kernels/kernels.toml)
fi
stages=("$@")
[ $# != 0 ] || stages=("${all[@]}")
for stage in "${stages[@]}"; do
    case " ${all[*]} " in
    *" $stage "*) ;;
    *)
        echo "no stage is called \`$stage\`: ${all[*]}" >&2
        exit 2
        ;;
    esac
done

mkdir -p "$logs"
passed=0 failed=0 summary=()

# Runs one stage, its output on the terminal and in its log; counts what it did. Leaves its exit code in `code`: a function
# that is called in a condition would not stop at its first error.
code=0
run() {
    local stage=$1 began=$SECONDS
    printf '\n=== %s\n' "$stage"
    set +e
    (set -e; "$stage") 2>&1 | tee "$logs/$stage.log"
    code=${PIPESTATUS[0]}
    set -e
    local good=0 bad=0
    if [ "$stage" = tests ]; then
        good=$(awk '/^test result: /{sum += $4} END {print sum + 0}' "$logs/tests.log")
        bad=$(awk '/^test result: /{sum += $6} END {print sum + 0}' "$logs/tests.log")
        # Something that did not compile has no result line.
        [ "$code" = 0 ] || [ "$bad" != 0 ] || bad=1
    elif [ "$code" = 0 ]; then
        good=1
    else
        bad=1
    fi
    passed=$((passed + good)) failed=$((failed + bad))
    summary+=("$(printf '%-8s %-6s %4d s  %5d passed %3d failed' "$stage" \
        "$([ "$code" = 0 ] && echo ok || echo FAILED)" $((SECONDS - began)) "$good" "$bad")")
}

for stage in "${stages[@]}"; do
    run "$stage"
    [ "$code" = 0 ] || break
done

printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
case " ${stages[*]} " in *" skips "*) grep '^skip: ' "$logs/skips.log" 2>/dev/null || true ;; esac
printf '%d s in all\n' "$SECONDS"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
