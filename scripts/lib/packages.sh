# shellcheck shell=bash disable=SC2154 # cache is common.sh's
# Debian packages as raw material: found through apt, downloaded and unpacked into the cache
# folder, never installed. Also what is made of them: kernel modules with their dependencies,
# an uncompressed kernel, cpio archives. Sourced after common.sh.
#
# The cache:  packages/NAME_VERSION_ARCH/   one unpacked package
#             packages/NAME.current         the folder that NAME stands for now; its time is that
#                                           of the last look at apt's lists

# package_tree NAME: prints the folder of package NAME in the newest version apt knows. For a
# kernel metapackage such as linux-image-amd64 it is the versioned package it depends on. What is
# cached is used as it is when apt cannot be asked or the download fails.
package_tree() {
    local current=$cache/packages/$1.current
    # apt renames into its lists folder whatever `apt-get update` finds changed.
    if [[ ! -s $current || /var/lib/apt/lists -nt $current ]]; then
        (
            lock "$cache/packages/lock"
            rm -rf "$cache"/packages/.new.* # of one that was killed
            if [[ ! -s $current || /var/lib/apt/lists -nt $current ]]; then
                package_refresh "$1" "$current"
            fi
        ) || return 1
    fi
    printf '%s/packages/%s\n' "$cache" "$(<"$current")"
}

# package_refresh NAME CURRENT: does package_tree's work, under its lock.
package_refresh() {
    local name=$1 current=$2 key
    if ! key=$(package_fetch "$name"); then
        if [[ -s $current ]]; then
            say "no news of $name from apt: staying with $(<"$current")"
            touch "$current"
            return 0
        fi
        say "asking apt for fresh package lists"
        logged as_root apt-get update || return 1
        key=$(package_fetch "$name") || {
            say "apt has no package $name: the lab and the guest images are made of Debian's own"
            return 1
        }
    fi
    printf '%s\n' "$key" >"$current.new"
    mv "$current.new" "$current"
}

# package_fetch NAME: prints the cache key of the package, after downloading it if it is new.
package_fetch() {
    local name=$1 line file key new
    if [[ $name == linux-image-* ]]; then
        name=$(apt-cache depends "$name" 2>/dev/null |
            awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
        [[ -n $name ]] || return 1
    fi
    line=$(apt-get download --print-uris "$name" 2>/dev/null) || return 1
    read -r _ file _ <<<"$line"
    key=${file%.deb}
    [[ -n $key && $key != */* ]] || return 1
    if [[ ! -d $cache/packages/$key ]]; then
        say "downloading $key (kept in $cache)"
        new=$(mktemp -d "$cache/packages/.new.XXXXXX")
        if ! package_unpack "$name" "$new"; then
            rm -rf "$new"
            return 1
        fi
        mv -T "$new/tree" "$cache/packages/$key"
        rm -rf "$new"
    fi
    printf '%s\n' "$key"
}

# package_unpack NAME NEW: NEW/tree becomes the unpacked package, made ready if it is a kernel.
package_unpack() {
    local tree=$2/tree
    (cd "$2" && logged apt-get download -q -o APT::Sandbox::User=root "$1") || return 1
    mkdir "$tree" || return 1
    logged dpkg -x "$2"/*.deb "$tree" || return 1
    chmod 755 "$tree"
    if [[ $1 == linux-image-* ]]; then
        # Since Debian 13 the modules lie below /usr/lib.
        [[ -e $tree/lib ]] || ln -s usr/lib "$tree/lib"
        logged depmod -b "$tree" "$(kernel_release "$tree")" || return 1
        kernel_extract "$tree/boot/vmlinuz-$(kernel_release "$tree")" "$tree/vmlinux" || return 1
    fi
}

# kernel_release TREE: prints the release (uname -r) of the kernel unpacked in TREE.
kernel_release() { basename "$(echo "$1"/lib/modules/*)"; }

# kernel_extract BZIMAGE VMLINUX: unpacks the ELF kernel that a bzImage carries. Follows the
# Linux/x86 boot protocol 2.08: setup_sects at 0x1f1, payload_offset and payload_length at 0x248
# and 0x24c; the offset counts from the end of the setup sectors.
kernel_extract() {
    local image=$1 out=$2 sectors start length size unpack
    [[ $(field "$image" 514 4) == 1400005704 ]] || { # "HdrS"
        say "$image is not a bzImage"
        return 1
    }
    sectors=$(field "$image" 497 1)
    start=$(((sectors == 0 ? 5 : sectors + 1) * 512 + $(field "$image" 584 4)))
    length=$(field "$image" 588 4)
    # The last four bytes are the unpacked size; for gzip they are also part of the stream.
    size=$(field "$image" $((start + length - 4)) 4)
    case $(od -An -t x1 -j "$start" -N 4 "$image" | tr -d ' ') in
        1f8b*) unpack='gzip -dc' length=$((length + 4)) ;;
        fd377a58) unpack='xz -dc' ;;
        5d0000*) unpack='xz --format=lzma -dc' ;;
        28b52ffd) unpack='zstd -dcq' ;;
        02214c18) unpack='lz4 -dcq' ;;
        425a68*) unpack='bzip2 -dc' ;;
        *) say "$image: unknown compression" && return 1 ;;
    esac
    dd if="$image" iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) bs=1M \
        status=none | $unpack >"$out" || return 1
    [[ $(stat -c %s "$out") == "$size" && $(field "$out" 0 4) == 1179403647 ]] || { # "\x7fELF"
        say "$image: its payload is not the ELF file of $size bytes it claims to be"
        return 1
    }
}

# field FILE OFFSET BYTES: prints the little-endian unsigned number at OFFSET.
field() { od -An --endian=little -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# copy_modules TREE DEST MODULE...: copies the modules and all that modules.dep says they need
# from the kernel in TREE to DEST, unpacked, and indexes them there. A module that is built into
# the kernel is fine, one that does not exist is not.
copy_modules() {
    local tree=$1 dest=$2 release dir file module
    shift 2
    release=$(kernel_release "$tree")
    dir=$tree/lib/modules/$release
    for module in "$@"; do
        # A module's file name may be spelt with - where its name has _.
        awk -v want="${module//-/_}" '
            { name = $1; sub(/.*\//, "", name); sub(/\.ko.*/, "", name); gsub(/-/, "_", name) }
            name == want { sub(/:/, ""); gsub(/ /, "\n"); print; found = 1 }
            END { exit !found }' "$dir/modules.dep" "$dir/modules.builtin" ||
            { say "the kernel $release has no module $module" && return 1; }
    done | sort -u | while read -r file; do
        [[ -e $dir/$file ]] || continue # built in
        install -D -m 644 "$dir/$file" "$dest/lib/modules/$release/$file"
    done || return 1
    find "$dest/lib/modules" -name '*.ko.xz' -exec xz -d {} + || return 1
    find "$dest/lib/modules" -name '*.ko.zst' -exec zstd -dq --rm {} + || return 1
    cp "$dir"/modules.{order,builtin,builtin.modinfo} "$dest/lib/modules/$release/" || return 1
    logged depmod -b "$dest" "$release"
}

# pack_cpio FOLDER: writes it to stdout as an initramfs, owned by root, the same for the same
# content.
pack_cpio() {
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z |
        cpio -0 -o -H newc -R 0:0 --reproducible --quiet)
}
