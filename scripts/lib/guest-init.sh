#!/bin/busybox sh
# shellcheck shell=dash
# First process of the test guest (see scripts/guest-image): looks at the machine it was given,
# says what it found on the console as lines "selftest: KEY=VALUE", then "selftest: ok" or
# "selftest: FAILED what", and ends as the kernel's command line asks with selftest.then=
#
#   poweroff   power off (the default)
#   reboot     reset the machine by the means that reboot= names
#   panic      crash the kernel
#   triplefault  as reboot; meant for reboot=t, which is a triple fault
#   shell      an interactive shell on the console; power off when it ends
#   hang       nothing, for ever
#
# With the word selftest.quick on the command line it powers off at once, having shown that user
# space was reached: for what counts the exits, or the time, of a boot alone.
#
# If there is a file /test, it is run in place of the self-test, and the machine powered off when it ends.
#
# Standalone busybox: every command is one of its own. Each character costs an exit to the VMM,
# so what need not be said is not.

echo "selftest: userspace"

/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc

read -r cmdline </proc/cmdline
case " $cmdline " in *" selftest.quick "*) exec /bin/busybox poweroff -f ;; esac

failures=
failed() { failures="$failures${failures:+, }$*"; }

mount -t sysfs sysfs /sys || failed "mount sysfs"
mount -t devtmpfs devtmpfs /dev || failed "mount devtmpfs"
if [ -e /test ]; then
    sh /test
    poweroff -f
fi
modprobe -a virtio_mmio virtio_rng pvpanic_mmio 2>/tmp/modprobe || failed "$(head -n 1 /tmp/modprobe)"

# The RAM that the VMM's memory map grants, before the kernel takes any of it.
memory_map_kib() {
    sum=0
    for range in /sys/firmware/memmap/*; do
        read -r type <"$range/type"
        [ "$type" = "System RAM" ] || continue
        read -r start <"$range/start"
        read -r end <"$range/end"
        sum=$((sum + end - start + 1))
    done
    echo $((sum / 1024))
}

report() { echo "selftest: $1=$2"; }

memory_map=$(memory_map_kib)
[ "$memory_map" -gt 0 ] || failed "no memory map"
report memory_kib "$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)"
report memory_map_kib "$memory_map"
report cpus "$(nproc)"
report cpus_present "$(cat /sys/devices/system/cpu/present)"
report cmdline "$(cat /proc/cmdline)"
report kernel "$(uname -r)"
report entropy "$(cat /proc/sys/kernel/random/entropy_avail)"
report hwrng "$(cat /sys/class/misc/hw_random/rng_current 2>/dev/null || echo none)"
if dmesg | grep -q 'crng init done'; then ready=yes; else ready=no; fi
report crng_ready "$ready"

if [ -e /payload ]; then
    found=$(sha256sum </payload)
    found=${found%% *}
    read -r wanted </payload.sha256
    report payload_sha256 "$found"
    if [ "$found" = "$wanted" ]; then
        report payload match
    else
        report payload mismatch
        failed "payload mismatch"
    fi
fi

then=$(sed -n 's/.*\bselftest\.then=\([a-z]*\).*/\1/p' /proc/cmdline)
case $then in
    '' | poweroff | reboot | triplefault | panic | shell | hang) ;;
    *) failed "no selftest.then=$then" ;;
esac

if [ "$failures" ]; then echo "selftest: FAILED $failures"; else echo "selftest: ok"; fi

case $then in
    reboot | triplefault) reboot -f ;;
    panic) echo c >/proc/sysrq-trigger ;;
    shell) setsid cttyhack sh ;;
    hang) while :; do sleep 1000; done ;;
esac
poweroff -f
