# The kernel's NBD client on an export of the host, over TCP: two connections, a file system, fsync, discard, check.
# PORT and NAME are set in front of this script.
fail() { echo "work: failed: $*"; exit 1; }

echo "work: connecting to port $PORT"
/sbin/nbd-client -N "$NAME" -connections 2 -timeout 120 10.0.2.2 "$PORT" /dev/nbd0 || fail connect
blockdev --getsize64 /dev/nbd0
/sbin/mke2fs -q -t ext4 -E discard -F /dev/nbd0 || fail mke2fs
mount -t ext4 -o discard /dev/nbd0 /mnt || fail mount
cd /mnt || fail cd
for n in $(seq 1 30); do
    dd if=/dev/urandom of="file$n" bs=4k count=$((n % 9 + 1)) conv=fsync 2>/dev/null || fail "write $n"
done
sha256sum file* >sums || fail sums
rm file7 file8
sync
cd / && umount /mnt || fail umount
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/nbd0 /mnt || fail "mount again"
(cd /mnt && grep -v -e ' file7$' -e ' file8$' sums | sha256sum -c >/dev/null) || fail "what was read back"
fstrim /mnt || fail fstrim
umount /mnt || fail "umount again"
/sbin/e2fsck -fn /dev/nbd0 || fail e2fsck
/sbin/nbd-client -d /dev/nbd0 || fail disconnect
