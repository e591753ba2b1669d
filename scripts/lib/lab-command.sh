#!/run/lab/busybox sh
# shellcheck shell=dash disable=SC1091,SC2154 # config is written by scripts/lab
# Second and last part of a lab machine's first process (see scripts/lab and lab-init.sh): runs
# the command on the host's file system, passes on its output and its status, ends the machine.

node=/run/lab/node
. "$node/config"

# Nodes start their command when they reach each other, or after half a minute for each.
for peer in $([ "$LAB_NODES" = 1 ] || seq "$LAB_NODES"); do
    tries=30
    until [ "$tries" = 0 ] || ping -q -c 1 -W 1 "10.99.0.$peer" >/dev/null 2>&1; do
        tries=$((tries - 1))
    done
done

if [ "$interactive" ]; then
    modprobe virtio_console
    # The file is there before the console behind it, which opens a little later.
    until (: <>/dev/hvc0) 2>/dev/null; do usleep 20000; done
    # Held open, or the terminal would forget its size between stty and the shell.
    while read -r size <"$node/window"; do
        # shellcheck disable=SC2086 # four words: rows N columns M
        [ "$size" = "$last" ] || stty $size
        last=$size
        sleep 1
    done <>/dev/hvc0 >/dev/null 2>&1 &
    setsid -c "$shell" "$node/command" <>/dev/hvc0 >&0 2>&1
    status=$?
else
    # The command gets pipes, as under any shell; relays write what comes to files on the host.
    mkfifo /run/lab/out /run/lab/err
    cat /run/lab/out >>"$node/out" &
    relays=$!
    if [ "$merged" ]; then
        setsid "$shell" "$node/command" </dev/null >/run/lab/out 2>&1 &
        command=$!
    else
        cat /run/lab/err >>"$node/err" &
        relays="$relays $!"
        setsid "$shell" "$node/command" </dev/null >/run/lab/out 2>/run/lab/err &
        command=$!
    fi
    wait "$command"
    status=$?

    # Whatever the command left running would hold the pipes open.
    for process in /proc/[0-9]*; do
        process=${process#/proc/}
        case " 1 $relays " in
            *" $process "*) ;;
            *) kill -KILL "$process" 2>/dev/null ;;
        esac
    done
    wait
fi

echo "$status" >"$node/status.new"
mv "$node/status.new" "$node/status"
sync
umount "$results" 2>/dev/null
poweroff -f
