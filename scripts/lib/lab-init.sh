#!/bin/busybox sh
# shellcheck shell=dash disable=SC1091,SC2154 # config is written by scripts/lab
# First process of a lab machine (see scripts/lab): from the initramfs, makes the host's file
# system, read-only, this machine's root, with fresh /tmp, /run, /dev, /proc and /sys, loads the
# kernel modules that the work in the lab needs, and hands over to lab-command.sh. Standalone
# busybox: every command here is one of its own.

node= # this node's part of the control folder
fail() {
    echo "lab: $*"
    [ -d "$node" ] && echo "$*" >"$node/failure"
    sync
    poweroff -f
}

# mount_9p TAG FOLDER OPTIONS
mount_9p() {
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || fail "cannot mount $1"
}

/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# What comes here is to interrupt, no more (see pulse in machines.sh).
stty -F /dev/ttyS1 raw -echo
cat /dev/ttyS1 >/dev/null &
modprobe -a @MODULES@ 2>/dev/console &
loading=$!
modprobe -a virtio_pci 9pnet_virtio 9p || fail "no 9p in this kernel"

# control: the folder through which scripts/lab and its machines talk; LAB_* and the lists of
# folders below come from there.
mount_9p control /control cache=none
node=/control/node$(sed -n 's/.*lab\.node=\([0-9]*\).*/\1/p' /proc/cmdline)
. "$node/config"
mount_9p root /root ro,cache=loose

# Folders that a fresh tmpfs is about to hide (the command's own, results): kept at hand first.
hold() {
    held=$((held + 1))
    mkdir -p "/held/$held"
    mount -o bind "/root$1" "/held/$held" || fail "cannot show $1"
}
while read -r folder; do hold "$folder"; done <"$node/exposed"
[ -d "/root$modules_mountpoint" ] &&
    mount -o bind "/root$modules" "/root$modules_mountpoint"

for folder in tmp run var/tmp; do
    [ -d "/root/$folder" ] && [ ! -h "/root/$folder" ] &&
        mount -t tmpfs -o mode=1777 tmpfs "/root/$folder"
done
chmod 755 /root/run
mkdir -p /root/run/lock /root/run/lab/control /root/run/lab/home
chmod 700 /root/run/lab/home

mount --move /control /root/run/lab/control
node=/root/run/lab/control/${node##*/}
ln -s "control/${node##*/}" /root/run/lab/node

mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/mqueue /dev/hugepages
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t hugetlbfs hugetlbfs /dev/hugepages
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount --move /dev /root/dev

held=0
while read -r folder; do
    held=$((held + 1))
    mkdir -p "/root$folder"
    mount --move "/held/$held" "/root$folder"
done <"$node/exposed"
mount_9p results "/root$results" cache=mmap

wait "$loading" || fail "not all kernel modules would load"
hostname "lab$LAB_NODE"
ip link set lo up
if [ "$LAB_NODES" -gt 1 ]; then
    # dummy.ko and friends make interfaces without a device behind them.
    for interface in /sys/class/net/*/device; do
        interface=${interface%/device}
        interface=${interface##*/}
    done
    ip link set "$interface" up
    ip addr add "10.99.0.$LAB_NODE/24" dev "$interface"
fi

cp /bin/busybox /lab-command /root/run/lab/
exec switch_root -c /dev/console /root /run/lab/busybox sh /run/lab/lab-command
