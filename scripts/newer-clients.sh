#!/bin/bash
# Fetches NBD clients of Debian 13 for the tests, whatever this machine runs: libnbd 1.22 with its Python module, qemu-img,
# qemu-io and qemu-nbd 10, fio. They negotiate extended headers (64-bit lengths), which the clients of Debian 12 do not know.
# Prints the folder that holds them, as commands under bin/.
#
#   scripts/newer-clients.sh [--force]
#
# Nothing is installed and no root is needed: apt, with a state of its own, finds the packages and all that they depend on,
# checks their signatures and downloads them; they are unpacked side by side and run with their own C library. A finished
# folder is kept and found again until this script changes; then nothing is downloaded.
#
# AFTERIMAGE_CLIENTS_DIR   where they are kept; default: newer-clients/ in cargo's target folder
# AFTERIMAGE_CLIENTS_FROM  the Debian mirror; default: http://deb.debian.org/debian
set -euo pipefail
umask 022
self=$(realpath "$0")
here=$(dirname "$self")
. "$here/kept.sh"
cache=${AFTERIMAGE_CLIENTS_DIR:-${CARGO_TARGET_DIR:-$here/../target}/newer-clients}
mirror=${AFTERIMAGE_CLIENTS_FROM:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
release=trixie
packages=(libnbd-bin python3-libnbd qemu-utils fio)
programs=(nbdinfo nbdcopy qemu-img qemu-io qemu-nbd fio python3)
die() { echo "scripts/newer-clients.sh: $*" >&2; exit 1; }

# Writes the settings of an apt that knows nothing of this machine but how to reach the net.
configure() {
    local apt=$1
    mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial "$apt"/etc/preferences.d
    : >"$apt/state/status"
    echo "deb [signed-by=$keyring] $mirror $release main" >"$apt/etc/sources.list"
    {
        apt-config dump Acquire
        cat <<END
Acquire::Languages "none";
Acquire::Retries "5";
Acquire::http::Timeout "60";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
Dir::Etc "$apt/etc";
Dir::Etc::parts "none.d";
END
    } >"$apt/apt.conf"
}

# Gets the packages and their dependencies. Lists and packages of a mirror are not changed at one moment, so that a failure
# is tried again from the lists on.
download() {
    local apt=$1 try
    for try in 1 2 3; do
        [ "$try" = 1 ] || sleep $((try * 5))
        if { APT_CONFIG=$apt/apt.conf apt-get update --error-on=any &&
            APT_CONFIG=$apt/apt.conf apt-get install --download-only "${packages[@]}"; } >"$apt/log" 2>&1 </dev/null
        then return; fi
    done
    cat "$apt/log" >&2
    die "cannot download ${packages[*]} of Debian $release from $mirror (AFTERIMAGE_CLIENTS_FROM names another mirror)"
}

# Unpacks what programs and libraries need to run, nothing setuid and nothing of the system's configuration.
unpack() {
    local apt=$1 root=$2 package
    mkdir -p "$root/usr/lib" "$root/usr/lib64"
    ln -s usr/lib "$root/lib"
    ln -s usr/lib64 "$root/lib64"
    for package in "$apt"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$root" --no-same-owner --keep-directory-symlink --exclude='./etc' --exclude='./var' --exclude='./usr/share'
    done
    find "$root" -type f -perm /6000 -exec chmod ug-s {} +
}

# Writes a command for each program, which finds its loader and libraries from where it lies itself.
install_commands() {
    local out=$1 program file loader libraries
    loader=$(cd "$out" && find root/usr/lib64 root/usr/lib -name 'ld-linux*.so.*' -print -quit)
    [ -n "$loader" ] || die "the packages hold no loader"
    # Also the folders that some packages keep for their own libraries, or those of this machine would be found there.
    libraries=$(cd "$out" && find root/usr/lib/*-linux-gnu* -maxdepth 2 -name 'lib*.so.*' -printf '$here/%h:' |
        tr ':' '\n' | LC_ALL=C sort -u | paste -sd: | sed 's/^://')
    mkdir "$out/bin"
    for program in "${programs[@]}"; do
        file=root/usr/bin/$program
        [ -x "$out/$file" ] || die "the packages hold no $program"
        {
            echo '#!/bin/sh'
            echo 'here=$(dirname "$(dirname "$(realpath "$0")")")'
            # It shall find its own modules only, and write no compiled ones beside them.
            [ "$program" != python3 ] ||
                echo 'export PYTHONHOME="$here/root/usr" PYTHONPATH="$here/root/usr/lib/python3/dist-packages" PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1'
            echo "exec \"\$here/$loader\" --inhibit-cache --argv0 $program --library-path \"$libraries\" \"\$here/$file\" \"\$@\""
        } >"$out/bin/$program"
        chmod +x "$out/bin/$program"
    done
}

# Every command must run, and libnbd know what this is all about.
try_commands() {
    local out=$1 program
    for program in "${programs[@]}"; do
        "$out/bin/$program" --version >/dev/null || die "$program was fetched, but does not run"
    done
    "$out/bin/python3" -c 'import nbd; nbd.NBD().set_request_extended_headers(True)' ||
        die "libnbd was fetched, but its Python module does not run"
}

build() {
    local work=$1
    echo "fetching NBD clients of Debian $release" >&2
    [ -e "$keyring" ] || die "$keyring is not there: install debian-archive-keyring"
    configure "$work/apt"
    download "$work/apt"
    mkdir "$work/out"
    unpack "$work/apt" "$work/out/root"
    install_commands "$work/out"
    try_commands "$work/out"
}

case "${1:-}" in
    "" | --force) ;;
    *) echo "usage: $0 [--force]" >&2; exit 2 ;;
esac
kept "$cache" "$release-$(cat "$self" "$here/kept.sh" | sha256sum | cut -c1-12)" bin "${1:-}"
