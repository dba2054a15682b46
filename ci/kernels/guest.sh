#!/bin/sh
# What weir is asked on another kernel: `cargo xtask vm --kernel NAME -- ci/kernels/guest.sh PROGRAMS [LAB…]`. PROGRAMS is the
# folder of netns-lab and weir-sim. Goes on after a failure, so that one run tells everything; fails if anything failed.
set -u
programs=$1
shift
failed=0
step() {
    began=$(cut -d. -f1 /proc/uptime)
    echo "=== $*"
    "$@" || failed=1
    echo "=== $(($(cut -d. -f1 /proc/uptime) - began)) s"
}
step "$programs/netns-lab" kernel --limits ci/kernels/limits.toml
step "$programs/weir-sim" run conformance/scenarios --engine kernel
[ $# = 0 ] || step "$programs/netns-lab" run "$@"
exit $failed
