# Process 1 of the guest after init.sh: the rest of the machine, then the one command, then off.
B=/run/vm/busybox
. /run/vm/run.env
port() { for p in /sys/class/virtio-ports/*; do
    [ "$($B cat "$p/name" 2>/dev/null)" = "$1" ] && echo "/dev/${p##*/}" && return; done; }
STATUS=$(port status)
say() { echo "$*" >"$STATUS"; }

$B mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
$B mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$B mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
$B ln -s /proc/self/fd /dev/fd; $B ln -s /proc/self/fd/0 /dev/stdin
$B ln -s /proc/self/fd/1 /dev/stdout; $B ln -s /proc/self/fd/2 /dev/stderr
$B hostname "vm-$KERNEL"
$B ifconfig lo 127.0.0.1 up
# QEMU's user network: .2 is the host (its 127.0.0.1 too), .3 its name server.
$B ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up && $B route add default gw 10.0.2.2
$B rm -f /etc/resolv.conf && echo nameserver 10.0.2.3 >/etc/resolv.conf
[ "$SHARE" ] && $B mount -t virtiofs share /share

if mount -t "$DISK_FS" /dev/vda /scratch; then
    $B mkdir -p /scratch/tmp /scratch/nydus-erofs
    $B mount -o bind /scratch/nydus-erofs /var/lib/nydus-erofs
else
    say "failed the scratch disk does not mount"
fi
say "up $($B cut -d' ' -f1 /proc/uptime)"

if [ "$SHELL_MODE" ]; then
    exec 3<>/dev/hvc0 # a terminal nobody has open forgets its size
    $B stty rows "$ROWS" cols "$COLUMNS" <&3
    $B setsid -c $B sh /run/vm/command.sh <&3 >&3 2>&1
    code=$?
else
    # Pipes in between: a port can be opened once only, and programs like to open /dev/stderr again.
    $B mkfifo /run/vm/out /run/vm/err
    $B cat /run/vm/out >"$(port stdout)" & cat_out=$!
    $B cat /run/vm/err >"$(port stderr)" & cat_err=$!
    $B sh /run/vm/command.sh </dev/null >/run/vm/out 2>/run/vm/err
    code=$?
    # Something left running may hold the pipes open for ever: give the readers two seconds.
    tries=40
    while [ $tries -gt 0 ] && { [ -d /proc/$cat_out ] || [ -d /proc/$cat_err ]; }; do
        $B sleep 0.05
        tries=$((tries - 1))
    done
fi
say "exit $code"

# A hung mount must not keep the machine up: the host waits some seconds, then pulls the plug.
($B umount /var/lib/nydus-erofs && $B umount /scratch) 2>/dev/null || $B mount -o remount,ro /scratch 2>/dev/null || $B sync
$B reboot -f
