# A machine at work on ext4 on /dev/vda: small files with fsync, renames, deletions, larger files, sync. Says when the file
# system is ready, waits for a line on the console, and then works until it is killed. A file /safe/N was synced, with its
# folder, before "work: safe N" is printed.
fail() { echo "work: failed: $*"; exit 1; }

/sbin/mke2fs -q -t ext4 -F /dev/vda || fail mke2fs
mount -t ext4 /dev/vda /mnt || fail mount
cd /mnt
mkdir safe small large || fail mkdir
sync
echo "work: file system is ready"
read -r _

n=0
while :; do
    n=$((n + 1))
    echo "content of $n" >safe/.new || fail "write $n"
    mv safe/.new "safe/$n" || fail "rename $n"
    sync "safe/$n" safe || fail "fsync $n"
    echo "work: safe $n"
    dd if=/dev/urandom of="small/$((n % 50))" bs=1k count=$((n % 17 + 1)) 2>/dev/null || fail "small $n"
    mv "small/$((n % 50))" "small/moved-$((n * 7 % 50))"
    [ $((n % 3)) != 0 ] || rm -f "small/moved-$((n * 5 % 50))"
    [ $((n % 5)) != 0 ] || dd if=/dev/zero of="large/$((n % 4))" bs=64k count=$((n % 30 + 1)) conv=fsync 2>/dev/null ||
        fail "large $n"
    [ $((n % 11)) != 0 ] || { mkdir -p "dir/$n/below" && echo "$n" >"dir/$n/below/file"; }
    [ $((n % 23)) != 0 ] || sync
done
