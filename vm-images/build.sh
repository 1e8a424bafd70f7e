#!/bin/bash
# Builds the test lab's guest from Debian packages, without root, and prints the folder that holds it. What is in the folder
# and how to boot it: README.md. A finished build is kept and found again, under the versions it was made from.
#
#   vm-images/build.sh [--force]
#   vm-images/build.sh --binary [PATH]     prints the path of a static, stripped `afterimage` for the guest
#
# --binary   makes it from the program at PATH, which must be static; without PATH cargo builds it (profile dev, or what
#            AFTERIMAGE_VM_PROFILE says)
#
# AFTERIMAGE_VM_DIR     where builds are kept; default: vm/ in cargo's target folder
# AFTERIMAGE_VM_KERNEL  a kernel package to use instead of Debian's newest 6.12
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
cache=${AFTERIMAGE_VM_DIR:-$target/vm}
die() { echo "vm-images/build.sh: $*" >&2; exit 1; }

# Programs of the guest beside busybox, by package; the libraries that they load come along.
base_packages=(busybox-static e2fsprogs xfsprogs nbd-client)
base_programs=(mke2fs e2fsck tune2fs dumpe2fs mkfs.xfs xfs_repair xfs_io xfs_db nbd-client)
# Programs that few guests want, and their packages; each has an archive of its own: fio loads 80 MiB of libraries.
extras=(fio sqlite3 qemu-ga)
extra_packages=(fio sqlite3 qemu-guest-agent)
# Modules of the guest, with those that they depend on; /init loads `early`, the kernel asks modprobe for others when it
# needs them. crc32c is looked up by name at run time, so no module's list of dependencies holds it.
early=(virtio_pci virtio_blk virtio_net qemu_fw_cfg crc32c_generic crc32c_intel ext4 nbd ublk_drv)
modules=("${early[@]}" virtio_console xfs vfat ntfs3 nls_ascii nls_cp437 loop virtio_rng dm_mod dm_log_writes)
# Of the root disk. It holds no fio, so most of it is free.
root_size=256M

# The kernel that the meta package stands for: 6.12 is a backport in Debian 12 and the normal kernel in Debian 13.
kernel_package() {
    local meta package
    [ -z "${AFTERIMAGE_VM_KERNEL:-}" ] || { echo "$AFTERIMAGE_VM_KERNEL"; return; }
    for meta in linux-image-6.12-amd64 linux-image-amd64; do
        package=$(apt-cache depends --important "$meta" 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
        [ -z "$package" ] || { echo "$package"; return; }
    done
    die "apt knows no linux-image-6.12-amd64 nor linux-image-amd64: run 'apt-get update' first"
}

# Prints the library packages that these packages depend on, directly or through other libraries.
libraries_of() {
    local next=("$@") seen=" " package found
    while [ ${#next[@]} -gt 0 ]; do
        found=$(apt-cache depends --important "${next[@]}" |
            sed -n 's/^ *\(Pre\)\?Depends: \(lib[^ ]*\|zlib1g\)$/\2/p' | sort -u)
        next=()
        for package in $found; do
            case "$seen" in *" $package "*) continue ;; esac
            seen+="$package "
            next+=("$package")
        done
    done
    echo "$seen"
}

# Downloads packages and unpacks them over one another: `fetch DIRECTORY PACKAGE...`
fetch() {
    local into=$1 file
    shift
    mkdir -p "$into.deb"
    (cd "$into.deb" && apt-get download -q "$@" >../download.log 2>&1) ||
        { cat "$into/../download.log" >&2; die "apt-get download failed: $*"; }
    for file in "$into.deb"/*.deb; do dpkg-deb -x "$file" "$into"; done
    rm -rf "$into.deb"
}

# Copies the libraries that a program or library needs, and those that they need: `install_needed FILE DEBIAN TREE`
install_needed() {
    local file=$1 debian=$2 tree=$3 name found
    readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | while read -r name; do
        [ ! -e "$tree/lib/$name" ] || continue
        found=$(find "$debian"/{usr/,}lib/x86_64-linux-gnu -maxdepth 2 -name "$name" 2>/dev/null | head -n 1)
        [ -n "$found" ] || die "no package holds the library $name, which $(basename "$file") needs"
        install -D "$(readlink -f "$found")" "$tree/lib/$name"
        install_needed "$tree/lib/$name" "$debian" "$tree"
    done
}

# `install_programs DEBIAN TREE NAME...`
install_programs() {
    local debian=$1 tree=$2 name found
    shift 2
    for name in "$@"; do
        found=$(find "$debian"/{usr/,}{bin,sbin} -maxdepth 1 -name "$name" 2>/dev/null | head -n 1)
        [ -n "$found" ] || die "no package holds the program $name"
        install -D "$(readlink -f "$found")" "$tree/sbin/$name"
        install_needed "$tree/sbin/$name" "$debian" "$tree"
    done
}

# Prints a module's file and first, recursively, the files of those that it depends on. Built-in ones have no file.
module_files() {
    local root=$1 name=$2 file dependency
    file=$(find "$root" -name "${name//[-_]/[-_]}.ko*" | head -n 1)
    [ -n "$file" ] || return 0
    case "$file" in
        *.xz) xz -d "$file"; file=${file%.xz} ;;
        *.zst) zstd -q -d --rm "$file"; file=${file%.zst} ;;
    esac
    for dependency in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' '); do
        module_files "$root" "$dependency"
    done
    echo "$file"
}

# The modules where modprobe looks for them, with its index, and the list of those that /init loads.
install_modules() {
    local root=$1 tree=$2 version name file folder
    version=$(basename "$(find "$root" -path '*lib/modules/*' -maxdepth 4 -mindepth 3 -type d -name '[0-9]*' | head -n 1)")
    folder=$tree/lib/modules/$version
    mkdir -p "$folder" "$tree/etc"
    for name in "${modules[@]}"; do module_files "$root" "$name"; done | awk '!seen[$0]++' | while read -r file; do
        cp "$file" "$folder/"
    done
    [ -n "$(ls "$folder")" ] || die "the kernel package holds none of: ${modules[*]}"
    # busybox's depmod: the program of the guest itself, so that it can read what it wrote.
    "$tree/bin/busybox" depmod -b "$tree" "$version"
    # Without those that are built in.
    for name in "${early[@]}"; do
        [ -z "$(find "$folder" -name "${name//[-_]/[-_]}.ko")" ] || echo "$name"
    done >"$tree/etc/early-modules"
}

# The kernel as a host has it, with the modules that `afterimage files` may want, compressed as they are packaged.
keep_kernel() {
    local root=$1 out=$2 modules
    modules=$(cd "$root" && ls -d lib/modules/*)
    mkdir -p "$out/boot"
    ln "$root"/boot/vmlinuz-* "$out/boot/"
    (cd "$root" && find "$modules" -name 'modules.builtin' -o -type f \( \
        -path '*/fs/ext4/*' -o -path '*/fs/jbd2/*' -o -name 'mbcache.ko*' -o -path '*/fs/xfs/*' -o -path '*/fs/fat/*' -o \
        -path '*/fs/ntfs3/*' -o -path '*/fs/nls/*' -o -path '*/lib/*crc*' -o -path '*/crypto/crc32*' -o \
        -path '*/drivers/virtio/*' -o -name 'virtio_blk.ko*' -o -name 'virtio_console.ko*' \) |
        cpio --quiet -p -d -m "$out")
}

base_tree() {
    local debian=$1 kernel=$2 tree=$3
    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,mnt,etc,run,lib,lib64,root,var/lib}
    install "$(find "$debian"/{usr/,}bin -name busybox | head -n 1)" "$tree/bin/busybox"
    "$tree/bin/busybox" --list | grep -vx -e busybox -e mke2fs | while read -r applet; do
        ln -s busybox "$tree/bin/$applet"
    done
    install_programs "$debian" "$tree" "${base_programs[@]}"
    ln -s ../lib/ld-linux-x86-64.so.2 "$tree/lib64/"
    for name in ext2 ext3 ext4; do ln -s mke2fs "$tree/sbin/mkfs.$name"; done
    # Where the kernel calls it.
    ln -s ../bin/busybox "$tree/sbin/modprobe"
    install_modules "$kernel" "$tree"
    install "$here/init" "$tree/init"
    ln -s ../proc/mounts "$tree/etc/mtab"
    install -m 644 "$debian/etc/mke2fs.conf" "$tree/etc/mke2fs.conf"
    echo "root:x:0:0:root:/root:/bin/sh" >"$tree/etc/passwd"
    echo "root:x:0:" >"$tree/etc/group"
}

# Not compressed: unpacking would take the emulated processor longer than reading does.
archive() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -R 0:0 -o -H newc) >"$2"; }

# The archive of a program, with what it needs beyond the base: `extra_archive WORK NAME`
extra_archive() {
    local work=$1 name=$2 file
    cp -a "$work/tree" "$work/with-$name"
    install_programs "$work/debian" "$work/with-$name" "$name"
    (cd "$work/with-$name" && find . -type f) | while read -r file; do
        [ -e "$work/tree/$file" ] || install -D "$work/with-$name/$file" "$work/$name/$file"
    done
    archive "$work/$name" "$work/out/$name.cpio"
}

# A root file system of root's files, whoever builds it, the same every time.
root_disk() {
    local tree=$1 image=$2 as_root=()
    [ "$(id -u)" = 0 ] || as_root=(unshare --map-root-user)
    find "$tree" -exec touch -h -d @0 {} +
    PATH=$PATH:/usr/sbin:/sbin E2FSPROGS_FAKE_TIME=1 "${as_root[@]}" mke2fs -q -F -t ext4 -d "$tree" -L afterimage-root \
        -U 6166746e-7269-4d61-8765-000000000001 -E hash_seed=6166746e-7269-4d61-8765-000000000002,root_owner=0:0 \
        "$image" "$root_size" >/dev/null
}

build() {
    local work=$1 package=$2 name
    echo "building the test guest from $package" >&2
    # shellcheck disable=SC2046
    fetch "$work/debian" "${base_packages[@]}" "${extra_packages[@]}" \
        $(libraries_of "${base_packages[@]}" "${extra_packages[@]}")
    fetch "$work/kernel" "$package"
    mkdir "$work/out"
    keep_kernel "$work/kernel" "$work/out/kernel"
    base_tree "$work/debian" "$work/kernel" "$work/tree"
    archive "$work/tree" "$work/out/initramfs"
    for name in "${extras[@]}"; do extra_archive "$work" "$name"; done
    touch "$work/out/root.ext4"
    root_disk "$work/tree" "$work/out/root.ext4"
    install -m 644 "$work/kernel"/boot/vmlinuz-* "$work/out/vmlinuz"
    echo "$package" >"$work/out/kernel-package"
}

# Prints the path of a static program for the guest.
binary() {
    local given=${1:-} profile=${AFTERIMAGE_VM_PROFILE:-dev} folder made
    if [ -z "$given" ]; then
        folder=$profile
        [ "$profile" != dev ] || folder=debug
        # Only the last step differs from the normal program, so all crates are shared with it where cargo knows a build
        # folder (1.91); only the program goes elsewhere.
        (cd "$here/.." && CARGO_BUILD_BUILD_DIR=$target CARGO_TARGET_DIR=$target/static cargo rustc --quiet \
            --package afterimage --bin afterimage --profile "$profile" -- -C target-feature=+crt-static >&2) ||
            die "the static program cannot be built"
        given=$target/static/$folder/afterimage
    fi
    ! readelf -l "$given" | grep -q INTERP || die "$given is not static: build it with -C target-feature=+crt-static"
    made=$cache/afterimage-$(sha256sum <"$given" | cut -c1-12)
    if [ ! -e "$made" ]; then
        # The builds that nobody asked for lately.
        find "$cache" -maxdepth 1 -name 'afterimage-*' -mmin +600 -delete
        strip -o "$made.new" "$given"
        mv "$made.new" "$made"
    fi
    touch "$made"
    echo "$made"
}

mkdir -p "$cache" "$target"
cache=$(cd "$cache" && pwd)
target=$(cd "$target" && pwd)
# One build at a time; who waited finds it done.
exec 9>"$cache/lock"
flock 9
case "${1:-}" in
    "" | --force) ;;
    --binary) binary "${2:-}"; exit ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
package=$(kernel_package)
made_from=$(
    apt-cache policy "$package" "${base_packages[@]}" "${extra_packages[@]}" libc6 | grep -e '^[^ ]' -e '^  Candidate: '
    cat "$here/build.sh" "$here/init"
)
out=$cache/${package#linux-image-}-$(sha256sum <<<"$made_from" | cut -c1-12)
[ "${1:-}" != --force ] || rm -rf "$out"
if [ ! -e "$out/vmlinuz" ]; then
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    build "$work" "$package"
    rm -rf "$out"
    mv "$work/out" "$out"
fi
echo "$out"
