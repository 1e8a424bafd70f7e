#!/bin/bash
# Builds the kernel and the initramfs of the test guest from Debian packages, without root, and prints the folder that
# holds them (vmlinuz, initramfs). A finished build is kept and found again, under the versions it was made from.
#
#   vm-images/build.sh [--force]
#
# AFTERIMAGE_VM_DIR     where builds are kept; default: vm/ in cargo's target folder
# AFTERIMAGE_VM_KERNEL  a kernel package to use instead of Debian's newest 6.12
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
cache=${AFTERIMAGE_VM_DIR:-${CARGO_TARGET_DIR:-$here/../target}/vm}
die() { echo "vm-images/build.sh: $*" >&2; exit 1; }

# Programs copied into the guest beside busybox, with the libraries that they load.
programs=(/sbin/mke2fs /sbin/e2fsck /usr/sbin/nbd-client)
# Modules of the guest, with those that they depend on. crc32c is looked up by name at run time, so no module's list
# of dependencies holds it.
modules=(virtio_pci virtio_blk virtio_net qemu_fw_cfg crc32c_generic crc32c_intel ext4 nbd ublk_drv)

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

# Copies a file and the shared libraries that it needs into the tree of the initramfs.
install_program() {
    local tree=$1 program=$2 library
    [ -x "$program" ] || die "$program is not there: run scripts/setup-debian.sh"
    install -D "$program" "$tree/sbin/$(basename "$program")"
    ldd "$program" | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*$/\1/p' | while read -r library; do
        [ -e "$tree$library" ] || install -D "$library" "$tree$library"
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

# Writes the modules in the order in which /init loads them.
install_modules() {
    local root=$1 tree=$2 name file number=100
    mkdir -p "$tree/modules"
    for name in "${modules[@]}"; do module_files "$root" "$name"; done | awk '!seen[$0]++' | while read -r file; do
        cp "$file" "$tree/modules/$number-$(basename "$file")"
        number=$((number + 1))
    done
    [ -n "$(ls "$tree/modules")" ] || die "the kernel package holds none of: ${modules[*]}"
}

build() {
    local work=$1 package=$2 tree=$1/tree root=$1/kernel
    echo "building the test guest from $package" >&2
    (cd "$work" && apt-get download -q "$package" >download.log 2>&1) ||
        { cat "$work/download.log" >&2; die "apt-get download $package failed"; }
    dpkg-deb -x "$work"/*.deb "$root"
    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,mnt,etc,run,lib,lib64}
    install "$(command -v busybox)" "$tree/bin/busybox"
    "$tree/bin/busybox" --list | grep -vx -e busybox -e mke2fs | while read -r applet; do
        ln -s busybox "$tree/bin/$applet"
    done
    for program in "${programs[@]}"; do install_program "$tree" "$program"; done
    install_modules "$root" "$tree"
    install "$here/init" "$tree/init"
    : >"$tree/etc/mtab"
    install -m 644 /etc/mke2fs.conf "$tree/etc/mke2fs.conf"
    mkdir "$work/out"
    install -m 644 "$root"/boot/vmlinuz-* "$work/out/vmlinuz"
    # Not compressed: unpacking would take the emulated processor longer than reading does.
    (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -R 0:0 -o -H newc) >"$work/out/initramfs"
    echo "$package" >"$work/out/kernel-package"
}

command -v busybox >/dev/null || die "busybox is not there: run scripts/setup-debian.sh"
package=$(kernel_package)
made_from=$(
    echo "$package"
    apt-cache policy "$package" | sed -n 's/^ *Candidate: //p'
    dpkg-query -W busybox-static e2fsprogs nbd-client libc6 2>/dev/null || true
    cat "$here/build.sh" "$here/init"
)
out=$cache/${package#linux-image-}-$(sha256sum <<<"$made_from" | cut -c1-12)
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
out=$cache/$(basename "$out")

# One build at a time; who waited finds it done.
exec 9>"$cache/lock"
flock 9
[ "${1:-}" != --force ] || rm -rf "$out"
if [ ! -e "$out/initramfs" ]; then
    work=$(mktemp -d "$cache/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    build "$work" "$package"
    mv "$work/out" "$out"
fi
echo "$out"
