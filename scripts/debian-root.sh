#!/bin/bash
# Makes a small Debian in a folder, with systemd and dpkg as they come, and prints the folder: where the package is installed by
# the tests (in an overlay; the folder itself stays as it is). A finished folder is kept and found again. Needs root, for packages
# are configured in it (debootstrap), and a mirror.
#
#   scripts/debian-root.sh bookworm|trixie [--force]
#
# AFTERIMAGE_ROOTS_DIR   where they are kept; default: debian-root/ in cargo's target folder
# AFTERIMAGE_ROOTS_FROM  the Debian mirror; default: http://deb.debian.org/debian
set -euo pipefail
umask 022
self=$(realpath "$0")
here=$(dirname "$self")
. "$here/kept.sh"
cache=${AFTERIMAGE_ROOTS_DIR:-${CARGO_TARGET_DIR:-$here/../target}/debian-root}
mirror=${AFTERIMAGE_ROOTS_FROM:-http://deb.debian.org/debian}
release=${1:-}
die() { echo "scripts/debian-root.sh: $*" >&2; exit 1; }

build() {
    local work=$1
    echo "making a root of Debian $release" >&2
    PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase --include=systemd,udev,kmod,e2fsprogs,passwd "$release" "$work/out" "$mirror" \
        >"$work/log" 2>&1 </dev/null || { tail -n 40 "$work/log" >&2; die "debootstrap failed ($mirror)"; }
    # What only fetching needed.
    rm -rf "$work/out"/var/cache/apt/archives/*.deb "$work/out"/var/lib/apt/lists/*
}

case "$release" in
    bookworm | trixie) ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$self" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || die "needs root"
PATH=$PATH:/usr/sbin:/sbin command -v debootstrap >/dev/null || die "install debootstrap (scripts/setup-debian.sh)"
kept "$cache" "$release-$(cat "$self" "$here/kept.sh" | sha256sum | cut -c1-12)" usr/bin/dpkg "${2:-}"
