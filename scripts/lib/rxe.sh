#!/usr/bin/env bash
# rxe.sh - soft-RoCE devices for tests, in the lab
#
# Usage: scripts/lab run -- scripts/lib/rxe.sh N COMMAND...
#        scripts/lab run --nodes M -- scripts/lib/rxe.sh INTERFACE COMMAND...
#
# Makes N RDMA devices rxe0, rxe1 and so on, over network interfaces that lead nowhere, with the addresses
# 10.98.I.1; or one device rxe0 over INTERFACE, by which machines reach each other; and runs COMMAND. What
# goes from one queue of a device to another of the same device is delivered; nothing goes from one device
# of a machine to another. They go with the machine. Needs root, and the modules dummy and rdma_rxe.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

what=$1
shift
if [[ $what =~ ^[0-9]+$ ]]; then
    for ((i = 0; i < what; i++)); do
        ip link add "roce$i" type dummy
        # The largest packets of RDMA, 4096 bytes, and their headers.
        ip link set "roce$i" mtu 4500 up
        ip addr add "10.98.$i.1/24" dev "roce$i"
        rdma link add "rxe$i" type rxe netdev "roce$i"
    done
else
    rdma link add rxe0 type rxe netdev "$what"
fi
exec "$@"
