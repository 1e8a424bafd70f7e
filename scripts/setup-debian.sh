#!/bin/bash
# Installs from Debian (12 or 13) what the tests need, and with --bench also the peers that the benchmarks compare with.
# Installs only what is missing and says nothing when nothing is. Runs as root, or as a user with sudo.
#
#   scripts/setup-debian.sh [--bench]
#   scripts/setup-debian.sh --refresh      only fetches apt's lists anew (for vm-images/build.sh, which downloads a kernel)
set -euo pipefail

# What the build and every test need.
packages=(
    openssl
    build-essential        # the linker and C compiler that some crates build with
    ca-certificates
    curl                   # the API as other programs use it
    fio
    libnbd-bin             # nbdinfo, nbdcopy
    python3-libnbd         # the script that walks every NBD command
    nbdkit                 # a second server to check the harness itself with
    qemu-system-x86
    qemu-utils             # qemu-img, qemu-nbd, qemu-io
    ipxe-qemu seabios      # firmware of the test guest
    e2fsprogs xfsprogs
    cpio xz-utils          # the test guest's initramfs
    ntfs-3g dosfstools fdisk    # mkfs.ntfs, mkfs.vfat, sfdisk: disks whose files are read
    util-linux             # unshare, nsenter
    iproute2               # ip, ss: hosts that are network namespaces
    debootstrap            # a root in which the package is installed
    systemd                # systemd-analyze
)

case "${1:-}" in
    "") ;;
    --bench) packages+=(nbd-server restic borgbackup zstd qemu-system-common linux-perf) ;;
    --refresh) packages=() ;;
    *) echo "usage: $0 [--bench | --refresh]" >&2; exit 2 ;;
esac

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
# A machine that never fetched apt's lists cannot download the test guest's kernel.
if [ ${#missing[@]} -eq 0 ] && [ "${1:-}" != --refresh ] && apt-cache show linux-image-amd64 >/dev/null 2>&1; then
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "$0: this is not a Debian system; install by other means: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "$0: run it as root, or install: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quiet() { "$@" >"$log" 2>&1 </dev/null || { cat "$log" >&2; echo "$0: '$*' failed" >&2; exit 1; }; }
apt_get() {
    quiet "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"
}
apt_get update
[ ${#missing[@]} -gt 0 ] || exit 0
echo "installing ${missing[*]}"

# All packages of QEMU must be of one build: where one of them came from backports or from an older point release,
# the other is moved to the version at hand for the emulator.
wanted=()
for package in "${missing[@]}"; do
    case "$package" in qemu-*) ;; *) wanted+=("$package") ;; esac
done
if [[ " ${missing[*]} " == *" qemu-"* ]]; then
    version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
    for package in qemu-system-x86 qemu-utils; do wanted+=("$package=$version"); done
fi
apt_get install -y --no-install-recommends --allow-downgrades "${wanted[@]}"
