#!/weir/busybox sh
# The guest's first process: makes the root and hands over to `start` in it. Says what it does on the console, which is
# printed when a boot fails.
b=/weir/busybox
say() { echo "weir: $*"; }
fail() {
    say "failed: $*"
    $b poweroff -f
}
$b mount -t devtmpfs dev /dev || fail devtmpfs
$b mount -t proc proc /proc || fail proc
$b mount -t sysfs sys /sys || fail sysfs
for module in /weir/modules/*.ko; do
    $b insmod "$module" || fail "$module"
done
# The machine's own file system below, never written; what the guest writes goes with it.
$b mount -t virtiofs -o ro weir-root /lower || fail "mount of the share"
$b mount -t tmpfs -o size=75%,mode=755 writes /writes || fail tmpfs
$b mkdir /writes/upper /writes/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/writes/upper,workdir=/writes/work root /new || fail overlay
$b mount -t tmpfs -o mode=755 run /new/run || fail "tmpfs on /run"
$b mkdir /new/run/weir-vm
$b cp -a /weir/busybox /weir/start /weir/command /new/run/weir-vm/
$b ln -s busybox /new/run/weir-vm/modprobe
for kind in proc sys dev; do
    $b mount --move "/$kind" "/new/$kind" || fail "moving /$kind"
done
exec $b switch_root /new /run/weir-vm/start
