#!/bin/busybox sh
# shellcheck shell=dash
# netup: brings up the network of a test guest (see scripts/guest-image), as an early user space does:
# by the words ip= (Linux, Documentation/admin-guide/nfs/nfsroot.rst) and vmm.ip6= of the kernel's command line,
# or, where there is no ip=, by DHCP. Says "net: ADDRESS/BITS via GATEWAY mtu MTU".
#
# Also what udhcpc calls with what it was told.

configure() { # ADDRESS MASK GATEWAY DNS...
    ip link set lo up
    ip link set eth0 up
    ifconfig eth0 "$1" netmask "$2" up
    [ -z "$3" ] || ip route add default via "$3"
    mkdir -p /etc
    address=$1 gateway=$3
    shift 3
    for server in "$@"; do [ -z "$server" ] || echo "nameserver $server"; done >/etc/resolv.conf
    bits=$(ip -4 -o addr show eth0 | sed -n 's/.*inet [0-9.]*\/\([0-9]*\).*/\1/p')
    echo "net: $address/$bits via $gateway mtu $(cat /sys/class/net/eth0/mtu)"
}

# Set by udhcpc.
: "${ip:=}" "${subnet:=}" "${router:=}" "${dns:=}"
case ${1-} in
    bound | renew)
        # shellcheck disable=SC2086 # a list
        configure "$ip" "$subnet" "${router%% *}" $dns
        exit
        ;;
    deconfig)
        ip link set eth0 up
        exit
        ;;
    ?*) exit ;;
esac

modprobe -a virtio_mmio virtio_net
i=0
while [ ! -e /sys/class/net/eth0 ] && [ $i -lt 100 ]; do
    i=$((i + 1))
    usleep 20000
done
six=$(sed -n 's/.*\bvmm\.ip6=\([^ ]*\).*/\1/p' /proc/cmdline)
[ -z "$six" ] || { ip link set eth0 up && ip -6 addr add "$six" dev eth0; }
word=$(sed -n 's/.*\bip=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ "$word" ]; then
    # CLIENT:SERVER:GATEWAY:MASK:NAME:DEVICE:HOW:DNS:DNS
    IFS=:
    # shellcheck disable=SC2086 # to be split
    set -- $word
    unset IFS
    hostname "$5"
    configure "$1" "$4" "$3" "${8-}" "${9-}"
else
    udhcpc -i eth0 -n -q -f -t 5 -s "$0" 2>/dev/null
fi
