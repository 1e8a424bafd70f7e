# Makes a root disk of a Debian with our package in it, as a guest of the laboratory boots it with systemd. In a mount namespace
# of its own:
#
#   systemd.sh ROOT WORK PACKAGE VM     ROOT stays as it is: everything happens in an overlay in WORK. VM is the folder of the
#                                       guest's builds, whose kernel it will be. The disk is WORK/root.raw.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
fail() { echo "failed: $*" >&2; exit 1; }

root=$2/over/root
mkdir "$2/over" && mount -t tmpfs over "$2/over" && mkdir "$2/over/new" "$2/over/work" "$root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/over/new,workdir=$2/over/work" "$root" || fail "no overlay"
(cd "$root/usr" && cpio --quiet -i -d 'lib/modules/*') <"$4/initramfs" || fail "no modules in $4/initramfs"
cp "$3" "$root/tmp/afterimage.deb"
mount -t proc proc "$root/proc"
chroot "$root" sh -e -c 'dpkg -i /tmp/afterimage.deb; depmod "$(ls /usr/lib/modules)"' >"$2/log" 2>&1 || { cat "$2/log"; fail "install"; }
umount "$root/proc"
rm "$root/tmp/afterimage.deb"

# What the laboratory's initramfs starts on a root disk.
ln -s usr/lib/systemd/systemd "$root/init"
# The test makes systemd impatient with devices of which it is not told else.
echo "/dev/vda  /  ext4  x-systemd.device-timeout=5min  0 1" >"$root/etc/fstab"
# Not the first boot, at which systemd asks questions, and not without a memory of the last one.
echo 61667465722d696d6167652d746573ff >"$root/etc/machine-id"
mkdir -p "$root/var/log/journal" "$root/var/lib/images"
cat >>"$root/etc/afterimage/agent.toml" <<'END'

[[volume]]
name = "disk"
path = "/dev/vdb"
ring = "16MiB"

[[volume]]
name = "image"
path = "/var/lib/images/image.raw"
ring = "16MiB"
END
truncate -s 64M "$root/var/lib/images/image.raw"

# The shell that the laboratory types to. It is there from the beginning, also when the boot fails, and up to the very end.
units=$root/etc/systemd/system
cat >"$units/lab.service" <<'END'
[Unit]
Description=Laboratory's shell on the second serial port
DefaultDependencies=no
IgnoreOnIsolate=yes

[Service]
ExecStart=/bin/sh -c 'stty -F /dev/ttyS1 raw -echo; echo "guest: console is ready" >/dev/ttyS0; while :; do setsid sh </dev/ttyS1 >/run/console.log 2>&1; done'
END
mkdir -p "$units/sysinit.target.wants"
ln -s ../lab.service "$units/sysinit.target.wants/"
# An emulated processor takes its time for what is not looked at here.
for unit in getty.target serial-getty@ttyS0.service timers.target systemd-logind.service systemd-user-sessions.service \
    systemd-hwdb-update.service ldconfig.service systemd-journal-catalog-update.service systemd-update-done.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount systemd-pstore.service \
    systemd-firstboot.service systemd-ask-password-console.path systemd-ask-password-wall.path e2scrub_reap.service \
    systemd-machine-id-commit.service systemd-hostnamed.socket systemd-sysext.socket systemd-creds.socket systemd-pcrextend.socket \
    systemd-pcrlock.socket systemd-network-generator.service; do
    ln -sf /dev/null "$units/$unit"
done
rm -rf "$root"/usr/share/doc/[!a]* "$root"/usr/share/locale "$root"/usr/share/man

truncate -s 800M "$2/root.raw"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -d "$root" "$2/root.raw"
