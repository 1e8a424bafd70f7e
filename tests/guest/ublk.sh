# What the tests of ublk have in common. Everything lies in memory: disks (sparse images), data folder, vault.
export NO_COLOR=1 RUST_BACKTRACE=1 AFTERIMAGE_DATA=/run/a
LOG=/run/up.log
# What a test adds to the environment of the process.
[ ! -e /run/env ] || . /run/env

fail() {
    echo "failed: $*"
    tail -n 40 $LOG
    dmesg | tail -n 20
    exit 1
}
now() { cut -d' ' -f1 /proc/uptime; }

# The process that protects the disks; the volumes are named in /run/disks.
PROGRAM=afterimage
up() {
    # shellcheck disable=SC2046
    setsid "$PROGRAM" up --ring 16MiB --min-free 0 $(cat /run/disks) >>$LOG 2>&1 &
    echo $! >/run/up.pid
}
answers() { while ! afterimage status >/dev/null 2>&1; do sleep 0.1; done; }
# Ends the process in the middle of whatever it does, and starts it again.
crash() {
    kill -9 "$(cat /run/up.pid)" && gone "$(cat /run/up.pid)"
    up
    answers
}
# Waits for a process that is not this shell's child.
gone() { while [ -e "/proc/$1" ] && ! grep -q 'State:.Z' "/proc/$1/status" 2>/dev/null; do sleep 0.05; done; }

# Small files with fsync, deleted and written again, until /run/stop is there.
work() {
    n=0
    while [ ! -e /run/stop ]; do
        n=$((n + 1))
        dd if=/dev/urandom "of=$1/f$((n % 40))" bs=4k count=$((n % 13 + 1)) conv=fsync 2>/dev/null || fail "write $n in $1"
        [ $((n % 9)) != 0 ] || rm -f "$1/f$((n * 7 % 40))"
        [ $((n % 25)) != 0 ] || fstrim "$1" || fail "fstrim $1"
    done
    echo "$1: $n files"
}

# A write through to the disk, and when it was done.
probe() {
    dd if=/dev/zero of="$1/probe" bs=4k count=1 conv=fsync 2>/dev/null || fail "probe $1"
    now
}

# `probes FOLDER...`
probes() { for folder; do printf ' %s' "$(probe "$folder")"; done; }

# `kills NUMBER FOLDER...`
kills() {
    times=$1
    shift
    for k in $(seq "$times"); do
        sleep "0.$((k * 37 % 90 + 10))"
        pid=$(cat /run/up.pid)
        from=$(now)
        kill -9 "$pid" || fail "kill $k: it had ended by itself"
        gone "$pid"
        up
        echo "stall $from$(probes "$@")"
        answers
    done
}

# Another program file takes the place of this one, as with a new version: `replace FOLDER...`
replace() {
    cp /bin/afterimage /run/afterimage-new
    PROGRAM=/run/afterimage-new
    pid=$(cat /run/up.pid)
    from=$(now)
    kill "$pid" && gone "$pid"
    up
    echo "stall $from$(probes "$@")"
    answers
    grep -q "stays: its users wait" $LOG || fail "the devices were not left"
    [ "$(readlink "/proc/$(cat /run/up.pid)/exe")" = $PROGRAM ] || fail "the old program runs"
}

# Is the file system sound, as a machine would find it that lost its power?
sound() {
    if [ "$1" = e ]; then
        /sbin/e2fsck -E journal_only -y "$2" >/run/fsck 2>&1
        /sbin/e2fsck -fn "$2" >>/run/fsck 2>&1 || { cat /run/fsck; fail "e2fsck $2"; }
    else
        mount -t xfs -o nouuid "$2" /mnt/past && umount /mnt/past || fail "mount $2"
        /sbin/xfs_repair -n "$2" >/run/fsck 2>&1 || { cat /run/fsck; fail "xfs_repair $2"; }
    fi
}

past() {
    device=$(afterimage attach "$1" --at "@$2" --writable) || fail "attach $1 @$2"
    sound "$1" "$device"
    afterimage detach "$device" >/dev/null || fail "detach $device"
}

verify() {
    fio --name=v --filename="$1" --size=4m --direct=1 --rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=8 \
        --numjobs="$2" --offset_increment=4m --fdatasync=32 --verify=crc32c --verify_fatal=1 --output=/run/fio.log ||
        { cat /run/fio.log; fail "fio $1"; }
    dd if=/dev/urandom "of=$1" bs=1M seek=20 count=2 oflag=direct 2>/dev/null || fail "fill $1"
    blkdiscard -o $((21 << 20)) -l $((1 << 20)) "$1" || fail "discard $1"
    dd "if=$1" bs=1M skip=21 count=1 iflag=direct of=/run/discarded 2>/dev/null
    head -c $((1 << 20)) /dev/zero | cmp - /run/discarded || fail "what is discarded reads as something"
}

# Zeroes are written by one request where the front end offers it, and read as such.
zeroes() {
    [ "$(cat "/sys/block/${1#/dev/}/queue/write_zeroes_max_bytes")" -gt 0 ] || fail "$1 takes no write zeroes"
    dd if=/dev/urandom "of=$1" bs=1M seek=24 count=2 oflag=direct 2>/dev/null || fail "fill $1"
    /sbin/xfs_io -c "fzero 24m 2m" "$1" || fail "write zeroes to $1"
    dd "if=$1" bs=1M skip=24 count=2 iflag=direct of=/run/zeroed 2>/dev/null
    head -c $((2 << 20)) /dev/zero | cmp - /run/zeroed || fail "zeroes of $1 read as something"
}

# Two partitions of a disk: 8 MiB, and the rest.
partition() { printf 'o\nn\np\n1\n\n+8M\nn\np\n2\n\n\nw\n' | fdisk "$1" >/run/fdisk.log 2>&1 || { cat /run/fdisk.log; fail "fdisk $1"; }; }
