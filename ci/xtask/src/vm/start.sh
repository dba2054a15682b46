#!/run/weir-vm/busybox sh
# First process of the guest in its root: mounts what a booted machine has, finds the ports, runs the command, says how it
# ended. Ports are said to be there by name, as no udev runs here.
b=/run/weir-vm/busybox
. /run/weir-vm/command settings
port() {
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$($b cat "$name")" = "$1" ]; then
            $b basename "$($b dirname "$name")"
            return
        fi
    done
}
control=/dev/$(port weir.control)
out=/dev/$(port weir.out)
error=/dev/$(port weir.error)
$b mkdir -p /dev/pts /dev/shm /run/lock /run/netns
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b ln -sf /proc/self/fd /dev/fd
$b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout
$b ln -sf /proc/self/fd/2 /dev/stderr
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t tracefs tracefs /sys/kernel/tracing
# Modules that the kernel asks for, with the programs of the first root: the machine may have none that fit.
$b mkdir -p "/lib/modules/$release"
$b mount --bind "$modules" "/lib/modules/$release"
echo /run/weir-vm/modprobe >/proc/sys/kernel/modprobe
command -v modprobe >/dev/null || $b ln -s /run/weir-vm/modprobe /usr/sbin/modprobe
$b hostname weir-guest
$b ip link set lo up
exec 3>"$control"
echo ready >&3
(
    exec 3>&-
    . /run/weir-vm/command run
) </dev/null >"$out" 2>"$error"
echo "exit $?" >&3
$b sync
$b reboot -f
