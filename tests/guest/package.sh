# Installs, upgrades, removes and purges the package in a Debian of its own. In a mount namespace of its own:
#
#   package.sh ROOT WORK PACKAGE UNIT=EXPOSURE...     ROOT stays as it is: everything happens in an overlay in WORK. EXPOSURE is
#                                                     what `systemd-analyze security` may find at most, in tenths
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
fail() { echo "failed: $*" >&2; exit 1; }

if [ "${1:-}" != inside ]; then
    mkdir "$2/over" && mount -t tmpfs over "$2/over" && mkdir "$2/over/new" "$2/over/work" "$2/over/root"
    root=$2/over/root
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/over/new,workdir=$2/over/work" "$root" || fail "no overlay"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    cp "$3" "$root/tmp/afterimage.deb"
    cp "$0" "$root/tmp/package.sh"
    shift 3
    exec chroot "$root" /bin/sh -e /tmp/package.sh inside "$@"
fi
shift

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# All files but what installing anything changes: the package manager's own state, logs, and backups of the accounts.
files() {
    find / -xdev \( -path /tmp -o -path /proc -o -path /dev -o -path /var/lib/dpkg -o -path /run -o -path /var/log -o -path /var/cache \) -prune -o \
        -not -name '*-' -not -name '.pwd.lock' -printf '%p %U:%G %m\n' | sort
}
units="afterimage-agent.service afterimage-appliance.service afterimage-mgmt.service"

files >/tmp/before
cp -a /etc/passwd /tmp/passwd.before
dpkg -i /tmp/afterimage.deb >/tmp/log 2>&1 || { cat /tmp/log; fail "install"; }
files >/tmp/installed
[ -z "$(dpkg -V afterimage)" ] || fail "dpkg -V: $(dpkg -V afterimage)"

# Nothing is anybody's but root's, and nothing is anybody's to write. The configuration is root's and its readers'.
diff /tmp/before /tmp/installed | sed -n 's/^> //p' >/tmp/new || true
group=$(getent group afterimage | cut -d: -f3)
awk -v g="$group" '$2 != "0:0" && !($1 == "/etc/afterimage" && $2 == "0:" g) {print; bad = 1} END {exit bad}' /tmp/new || fail "owners"
awk '$3 ~ /[2367]$/ || $3 ~ /[2367].$/ {print; bad = 1} END {exit bad}' /tmp/new || fail "modes"
getent passwd afterimage | grep -q ':/usr/sbin/nologin$\|:/sbin/nologin$' || fail "no user that cannot log in: $(getent passwd afterimage)"
afterimage --version
for kind in agent appliance mgmt; do
    [ -f "/etc/afterimage/$kind.toml" ] || fail "no $kind.toml"
done

# What a role that is taken over could reach.
for limit; do
    rated=$(systemd-analyze security --offline=yes --no-pager --threshold="${limit#*=}" "/usr/lib/systemd/system/${limit%=*}" 2>&1) ||
        fail "systemd-analyze security: $rated"
    echo "${limit%=*}: $(echo "$rated" | tail -n 1)"
done

# A disk of fstab is mounted after the agent and unmounted before it stops, stays mounted when the agent is restarted, and
# nothing waits for itself.
mkdir -p /run/generated
cp -a /etc/fstab /tmp/fstab
# As the agent's unit recommends it.
sed -n 's/^#     \(.dev.*\)/\1/p' /usr/lib/systemd/system/afterimage-agent.service >/etc/fstab
/usr/lib/systemd/system-generators/systemd-fstab-generator /run/generated /run/generated /run/generated
cat /run/generated/srv.mount
grep -q '^After=.*afterimage-agent.service' /run/generated/srv.mount || fail "the mount is not after the agent"
! grep -q '^\(Requires\|BindsTo\|PartOf\)=.*afterimage-agent.service' /run/generated/srv.mount || fail "a restart of the agent unmounts it"
grep -q '^Before=.*local-fs.target' /run/generated/srv.mount || fail "the mount is not of local-fs.target"
mkdir -p /run/systemd/system
cp -a /run/generated/. /run/systemd/system/
systemctl --root=/ enable afterimage-agent.service 2>/dev/null
[ -L /etc/systemd/system/multi-user.target.wants/afterimage-agent.service ] || fail "the agent cannot be enabled"
verified=$(systemd-analyze verify --man=no srv.mount local-fs.target remote-fs.target multi-user.target $units 2>&1 || true)
case "$verified" in *cycle* | *afterimage*) fail "systemd-analyze verify: $verified" ;; esac
# That it would have seen one.
mkdir -p /run/systemd/system/afterimage-agent.service.d
printf '[Unit]\nAfter=local-fs.target\n' >/run/systemd/system/afterimage-agent.service.d/cycle.conf
case "$(systemd-analyze verify --man=no local-fs.target multi-user.target 2>&1 || true)" in
    *cycle*) ;;
    *) fail "an agent behind local-fs.target is not found to be a cycle" ;;
esac
rm -r /run/systemd/system /run/generated
cp -a /tmp/fstab /etc/fstab

# An upgrade keeps what the administrator wrote.
echo "# mine" >>/etc/afterimage/agent.toml
dpkg -i /tmp/afterimage.deb >/tmp/log 2>&1 || { cat /tmp/log; fail "upgrade"; }
grep -q "# mine" /etc/afterimage/agent.toml || fail "the upgrade took the configuration away"

# Removed, the configuration stays; purged, nothing does.
dpkg -r afterimage >/tmp/log 2>&1 || { cat /tmp/log; fail "remove"; }
[ ! -e /usr/bin/afterimage ] && [ -e /etc/afterimage/agent.toml ] || fail "remove"
dpkg -P afterimage >/tmp/log 2>&1 || { cat /tmp/log; fail "purge"; }
files >/tmp/after
diff /tmp/before /tmp/after || fail "purge leaves or takes something"
diff /tmp/passwd.before /etc/passwd || fail "purge leaves a user"

# Where there is history, it is not purged, and keeps its owner.
dpkg -i /tmp/afterimage.deb >/tmp/log 2>&1 || { cat /tmp/log; fail "second install"; }
mkdir -p /var/lib/afterimage && echo vault >/var/lib/afterimage/vault && chown -R afterimage: /var/lib/afterimage
dpkg -P afterimage >/tmp/log 2>&1 || { cat /tmp/log; fail "second purge"; }
grep -q "is left" /tmp/log && [ "$(stat -c %U /var/lib/afterimage/vault)" = afterimage ] || fail "history and its owner"
echo "installed, upgraded, removed, purged"
