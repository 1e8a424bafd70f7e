#!/bin/bash
# Builds the Debian package, without root, and prints its path. The same program makes the same package, byte by byte.
#
#   packaging/build-deb.sh [--binary PATH] [--out FOLDER]
#
# --binary   the `afterimage` program to pack; without it cargo builds one (profile release)
# --out      where the package goes; default: debian/ in cargo's target folder
set -euo pipefail
umask 022
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
die() { echo "packaging/build-deb.sh: $*" >&2; exit 1; }

binary='' out=$target/debian
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) binary=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
if [ -z "$binary" ]; then
    (cd "$repo" && cargo build --quiet --release --package afterimage --bin afterimage >&2) || die "the program cannot be built"
    binary=$target/release/afterimage
fi
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repo/Cargo.toml" | head -n 1)
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$repo" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/afterimage
mkdir -p "$root"/DEBIAN "$root"/usr/bin "$root"/lib/systemd/system "$root"/usr/lib/sysusers.d "$doc/examples"

strip -o "$root/usr/bin/afterimage" "$binary"
chmod 755 "$root/usr/bin/afterimage"
install -m 644 "$here"/systemd/*.service "$root/lib/systemd/system/"
install -m 644 "$here/debian/sysusers.conf" "$root/usr/lib/sysusers.d/afterimage.conf"
install -m 644 "$repo"/examples/*.toml "$doc/examples/"
install -m 644 "$repo"/docs/cli.md "$repo"/docs/trouble.md "$repo"/docs/status-json.md "$repo"/docs/{api,metrics,points,security}.md "$repo"/docs/openapi.json "$doc/"
install -m 644 "$here"/prometheus/afterimage.rules.yml "$here"/grafana/afterimage.json "$doc/examples/"
# The configuration: the examples, without the example's disk.
install -d -m 750 "$root/etc/afterimage"
install -m 644 "$repo/examples/appliance.toml" "$root/etc/afterimage/appliance.toml"
install -m 644 "$repo/examples/mgmt.toml" "$root/etc/afterimage/mgmt.toml"
sed '/^\[\[volume\]\]/,$s/^\([^#]\)/#\1/' "$repo/examples/agent.toml" >"$root/etc/afterimage/agent.toml"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Afterimage\n\n'
    printf 'Files: *\nCopyright: The Afterimage authors\nLicense: Apache-2.0 or Expat\n\n'
    printf 'License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\nLicense: Expat\n'
    sed 's/^$/./; s/^/ /' "$repo/LICENSE-MIT"
} >"$doc/copyright"
{
    printf 'afterimage (%s) unstable; urgency=medium\n\n  * Release %s.\n\n' "$version" "$version"
    printf ' -- The Afterimage authors <nobody@localhost>  %s\n' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$doc/changelog.gz"

# What the program needs of the system: the newest symbol of the C library.
glibc=$(objdump -T "$binary" 2>/dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1 | sed 's/GLIBC_//' || true)
depends=()
[ -z "$glibc" ] || depends=("libc6 (>= $glibc), libgcc-s1")
{
    echo "Package: afterimage"
    echo "Version: $version"
    echo "Architecture: $architecture"
    echo "Maintainer: The Afterimage authors <nobody@localhost>"
    echo "Installed-Size: $(du -k -s --apparent-size "$root" | cut -f1)"
    [ ${#depends[@]} -eq 0 ] || echo "Depends: ${depends[*]}"
    echo "Suggests: qemu-system-x86, qemu-utils, xz-utils"
    echo "Section: admin"
    echo "Priority: optional"
    echo "Description: continuous data protection for disks and QEMU virtual machines"
    echo " Keeps every write to a disk, so that the disk can be brought back as it was after"
    echo " any of them. This package holds the agent, which protects disks of this machine,"
    echo " the appliance, which keeps their history, mgmt, which coordinates them, and the"
    echo " commands for all."
} >"$root/DEBIAN/control"
printf '/etc/afterimage/%s\n' agent.toml appliance.toml mgmt.toml >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 755 "$here/debian/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find . -type f -not -path './DEBIAN/*' -not -path './etc/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) \
    >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN"/{control,conffiles,md5sums}
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
package=$(cd "$out" && pwd)/afterimage_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz -z6 --build "$root" "$package" >/dev/null
echo "$package"
