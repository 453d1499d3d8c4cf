#!/bin/busybox sh
# First process of the guest. Root = the host's / (virtiofs, read-only) under a tmpfs overlay, so that
# the checkout and its venv have the paths they have on the host; then guest.sh, as process 1.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev 2>/dev/null
. /run.env

load() { for module in $($B cat "$1"); do $B insmod "/m/$module" || echo "init: $module does not load"; done; }
load /boot.order
[ "$STOCK" ] || load /extra.order

$B mount -t virtiofs -o ro host /lower || echo "init: no root from the host"
$B mount -t tmpfs -o size=75% tmpfs /rw
$B mkdir -p /rw/upper /rw/work /rw/modules /rw/modwork
$B mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root
for dir in proc sys dev run scratch share lib/modules boot var/lib/nydus-erofs; do
    [ -d "/root/$dir" ] || $B mkdir -p "/root/$dir"
done
for fs in proc sys dev; do $B mount -o move /$fs /root/$fs; done
$B mkdir -p /root/dev/pts /root/dev/shm
$B mount -t devpts devpts /root/dev/pts
$B mount -t tmpfs tmpfs /root/dev/shm
$B mount -t tmpfs tmpfs /root/run
# The kernel's own modules for modprobe, writable; what was rebuilt for the cachefiles engine lies above.
at=/lower$PREPARED
layers=$at/stock/usr/lib/modules
[ "$STOCK" ] || [ ! -d "$at/rebuilt" ] || layers=$at/rebuilt/usr/lib/modules:$layers
$B mount -t overlay -o "lowerdir=$layers,upperdir=/rw/modules,workdir=/rw/modwork" modules /root/lib/modules
$B cp "$at/config" "/root/boot/config-$($B uname -r)"
$B mkdir /root/run/vm
$B cp /bin/busybox /run.env /guest.sh /command.sh /root/run/vm/
exec $B switch_root /root /run/vm/busybox sh /run/vm/guest.sh
