# shellcheck shell=bash disable=SC2154 # the variables of scripts/lab
# The processes of a lab run (see scripts/lab): one QEMU a node, what keeps it awake, the switch
# between them, the relays of what the commands print, the clock. All are children of this shell
# and die with it, even by SIGKILL (setpriv --pdeathsig). Sourced by scripts/lab.
#
# A run has a folder, $run, in the cache:
#
#   control/nodeI/   what scripts/lab and node I tell each other over 9p: config (variables),
#                    exposed (folders to show), command, window (the terminal's size) from here;
#                    out, err, status, failure from there
#   consoleI         the kernel's messages of node I
#   qemuI, switch    what QEMU had to say
#   pulseI.in, .out  what keeps node I awake, see pulse
#   kept             there if the lab failed and the folder is to stay

machines=() # process of each node that runs, by node
relays=()   # processes that pass on the nodes' output
switch=''   # process
clock=''    # process that ends when the time is up
pulses=()   # process that keeps each node awake, by node
lost=()     # nodes that ended without a result

# child COMMAND...: runs it in the background, with this stdin, such that it cannot outlive us.
child() { setpriv --pdeathsig KILL -- "$@" <&0 & }

# new_run: makes $run, held by a lock as long as the lab or one of its machines lives; removes
# the folders of runs that were killed, and those kept for longer than a week.
new_run() {
    local old lock_fd
    mkdir -p "$cache/runs"
    for old in "$cache"/runs/*; do
        flock -n "$old" true 2>/dev/null || continue
        [[ -e $old/kept && -z $(find "$old/kept" -mtime +7) ]] || rm -rf "$old"
    done
    # Hidden from others' clearing until it is locked.
    old=$(mktemp -d "$cache/runs/.XXXXXXXX")
    exec {lock_fd}<"$old"
    flock "$lock_fd"
    run=$cache/runs/$$${old##*/}
    mv "$old" "$run"
}

# switch_on NODES: starts a QEMU without a machine that joins the cables of NODES nodes in a hub.
switch_on() {
    local node ports=()
    for ((node = 1; node <= $1; node++)); do
        ports+=(
            -netdev "stream,id=s$node,server=on,addr.type=unix,addr.path=${run//,/,,}/port$node"
            -netdev "hubport,id=h$node,hubid=0,netdev=s$node"
        )
    done
    child qemu-system-x86_64 -name labnet -nodefaults -no-user-config -machine none \
        -display none "${ports[@]}" </dev/null 2>"$run/switch"
    switch=$!
    for ((node = 1; node <= $1; node++)); do
        until [[ -S $run/port$node ]]; do
            kill -0 "$switch" 2>/dev/null || fail "the nodes' network did not start" "$run/switch"
            sleep 0.02
        done
    done
}

# pulse NODE: an interrupt of the node's second serial line, twice a second. Without it a machine stood still about
# once an hour, its processor halted and QEMU idle. Our explanation, which is not proven: with SVM, QEMU's thread for a
# processor changes the set of its pending interrupts at each exit of a guest without the lock under which other
# threads add to it, and loses the timer's. The next interrupt of any device has it ask its APIC again.
pulse() {
    mkfifo "$run/pulse$1.in" "$run/pulse$1.out"
    # Both fifos are open for both, so that nobody waits for the other to open them.
    child bash -c 'while :; do read -rt 0.5 -u 3 || echo; done' 3<>"$run/pulse$1.out" 1<>"$run/pulse$1.in"
    pulses[$1]=$!
}

# launch NODE: starts the node's QEMU.
launch() {
    local node=$1 folder=${run//,/,,} net=() terminal=()
    ((nodes == 1)) || net=(
        -netdev "stream,id=net,server=off,addr.type=unix,addr.path=$folder/port$node"
        -device "virtio-net-pci,netdev=net,mac=52:54:00:99:00:0$node"
    )
    # Ctrl-] (0x1d) for QEMU's own keys, not Ctrl-a, which is a shell's start of line.
    [[ -z $interactive ]] || terminal=(
        -chardev "stdio,id=terminal,signal=off,mux=on" -echr 0x1d
        -device virtio-serial-pci -device "virtconsole,chardev=terminal"
    )
    pulse "$node"
    # Without "rep" string moves being called fast (erms, fsrm): the emulator does them byte by
    # byte, so that clearing and copying memory would take the lab eight times as long.
    child qemu-system-x86_64 -name "lab$node" -nodefaults -no-user-config \
        -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp "$cpus" -m "$memory" -display none \
        -no-reboot \
        -kernel "$kernel_tree/vmlinux" -initrd "$initramfs" \
        -append "console=ttyS0 panic=-1 quiet mitigations=off lab.node=$node" \
        -chardev "file,id=log,path=$folder/console$node" -serial chardev:log \
        -chardev "pipe,id=pulse,path=$folder/pulse$node" -serial chardev:pulse \
        -device virtio-rng-pci \
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap" \
        -virtfs "local,path=$folder/control,mount_tag=control,security_model=none" \
        -virtfs "local,path=${results//,/,,},mount_tag=results,security_model=none,multidevs=remap" \
        "${net[@]}" "${terminal[@]}" <&0 2>"$run/qemu$node"
    machines[node]=$!
}

# relay NODE STREAM: passes on what the node writes to STREAM, out or err, until its QEMU ends.
# The file in between never makes the node wait, and loses nothing when the node ends.
relay() {
    local file=$run/control/node$1/$2 pid=${machines[$1]}
    if ((nodes == 1)); then
        child tail -s 0.1 -c +1 -f --pid="$pid" "$file" 2>/dev/null
    else
        child sed -u "s/^/[$1] /" < <(
            exec setpriv --pdeathsig KILL -- tail -s 0.1 -c +1 -f --pid="$pid" "$file" 2>/dev/null
        )
    fi
    relays+=($!)
}

# set_clock SECONDS
set_clock() {
    child sleep "$1"
    clock=$!
}

# follow: waits for the end of all nodes, of the time, or of whoever reads our output; sets status.
follow() {
    local node ended result left=${#machines[@]}
    status=0
    while ((left > 0)); do
        result=0
        ended=''
        wait -n -p ended "${machines[@]}" "${relays[@]}" ${clock:+"$clock"} || result=$?
        case " ${ended-} " in
            '  ') continue ;; # a signal with a trap: the window's size
            " $clock ")
                clock=''
                status=124
                return
                ;;
        esac
        for node in "${!relays[@]}"; do
            [[ ${relays[node]} == "$ended" ]] || continue
            unset "relays[node]"
            if ((result != 0)); then
                # Its reader is gone: end as a pipe's writer does.
                status=141
                return
            fi
        done
        for node in "${!machines[@]}"; do
            [[ ${machines[node]} == "$ended" ]] || continue
            unset "machines[node]"
            left=$((left - 1))
            if [[ -s $run/control/node$node/status ]]; then
                result=$(<"$run/control/node$node/status")
            else
                lost+=("$node")
                result=125
            fi
            ((status != 0)) || status=$result
        done
    done
}

# fail WORDS FILE...: the lab itself failed; keeps $run for whoever looks into it.
fail() {
    local file
    say "$1"
    touch "$run/kept"
    for file in "${@:2}"; do
        [[ -s $file ]] || continue
        say "the end of $file:"
        tail -n 15 "$file" | tr -d '\r' | sed 's/^/    /' >&2
    done
    exit 125
}

# end: leaves nothing of this run behind, however it ended.
end() {
    local node
    trap '' INT TERM HUP
    # Some of them may have ended, and how is of no interest any more.
    kill -KILL "${machines[@]}" "${pulses[@]}" ${switch:+"$switch"} ${clock:+"$clock"} 2>/dev/null || true
    # Only a process that was waited for is gone for the relays, which then write the rest.
    for node in "${machines[@]}" "${pulses[@]}" "${relays[@]}"; do wait "$node" || true; done 2>/dev/null
    [[ -z $terminal_state ]] || stty "$terminal_state"
    if [[ -n $console && -n $run ]]; then
        for ((node = 1; node <= nodes; node++)); do
            cp "$run/console$node" "$console$( ((node == 1)) || echo ".$node")" || true
        done
    fi
    [[ -z $run || -e $run/kept ]] || rm -rf "$run"
    [[ -z $own_results ]] || rmdir "$results" 2>/dev/null || say "the results are in $results"
}

# interrupted SIGNAL: ends as that signal would have ended us, and leaves output where it is.
interrupted() {
    kill -KILL "${relays[@]}" 2>/dev/null || true
    end
    trap - EXIT "$1"
    kill "-$1" "$$"
}
