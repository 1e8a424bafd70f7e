# 4 KiB random writes, guest against guest in one run: ublk plain, ublk protected, the kernel's NBD client on our protected
# export and on qemu-nbd. Prints lines "figure SETUP IOPS SERVER-MICROSECONDS MACHINE-MICROSECONDS", the last two of processor
# time for each write: of the serving process, and of everything but idling. Then how long a write waits while the agent is
# killed, and while another program file takes its place: "stall HOW MILLISECONDS".
export NO_COLOR=1
fail() { echo "failed: $*"; tail -n 20 /run/*.log; exit 1; }

image() { dd if=/dev/zero "of=$1" bs=1M count=96 2>/dev/null; }
answers() { while ! afterimage status --data "$1" >/dev/null 2>&1; do sleep 0.1; done; }
server_ticks() { sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f12,13 | tr ' ' + | xargs echo | awk -F+ '{print $1 + $2}'; }
machine_ticks() { awk '/^cpu / {print $2 + $3 + $4 + $7 + $8}' /proc/stat; }

measure() {
    server=$(server_ticks "$3")
    machine=$(machine_ticks)
    fio --name=w --filename="$2" --size=96m --direct=1 --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --time_based \
        --runtime="$SECONDS_EACH" --minimal >/run/fio.out 2>/run/fio.log || fail "fio $2"
    server=$(($(server_ticks "$3") - server))
    machine=$(($(machine_ticks) - machine))
    # Terse output, version 3: field 47 is KiB written, field 49 writes a second. A tick is 10 ms.
    awk -F';' -v name="$1" -v s="$server" -v m="$machine" \
        '{n = $47 / 4; printf "figure %s %d %.1f %.1f\n", name, $49, s * 10000 / n, m * 10000 / n}' /run/fio.out
}

ip link set lo up
image /run/plain.raw
image /run/safe.raw
image /run/qemu.raw
setsid afterimage appliance --data /run/v --min-free 0 >/run/v.log 2>&1 &
setsid afterimage up --no-protect --data /run/p disk=/run/plain.raw >/run/p.log 2>&1 &
plain=$!
answers /run/v
agent() { setsid "$1" agent --data /run/g --appliance unix:/run/v/appliance.sock --ring 256MiB disk=/run/safe.raw >>/run/g.log 2>&1 & safe=$!; }
agent afterimage
answers /run/p
answers /run/g
afterimage wait --data /run/g disk --timeout 5m || fail "live"
setsid qemu-nbd -t -e 4 -f raw --cache=writeback -k /run/q.sock /run/qemu.raw >/run/q.log 2>&1 &
qemu=$!
while [ ! -S /run/q.sock ]; do sleep 0.1; done

for _ in $(seq "$ROUNDS"); do
    d=$(afterimage attach --data /run/p disk --ublk) || fail "attach"
    measure ublk-plain "$d" $plain
    afterimage detach --data /run/p disk >/dev/null || fail "detach"
    d=$(afterimage attach --data /run/g disk --ublk) || fail "attach"
    measure ublk-protected "$d" $safe
    afterimage detach --data /run/g disk >/dev/null || fail "detach"
    d=$(afterimage attach --data /run/g disk --nbd) || fail "attach"
    measure nbd-protected "$d" $safe
    afterimage detach --data /run/g disk >/dev/null || fail "detach"
    /sbin/nbd-client -unix /run/q.sock /dev/nbd9 >/dev/null 2>&1 || fail "nbd-client"
    measure nbd-qemu /dev/nbd9 $qemu
    /sbin/nbd-client -d /dev/nbd9 >/dev/null 2>&1
    sleep 1
done

# What was measured was protection.
afterimage status --data /run/g --json | tr -d ' \n' >/run/status
grep -q '"gaps":0' /run/status && grep -q '"state":"live"' /run/status || fail "the volume was not live: $(cat /run/status)"

now() { awk '{print int($1 * 1000)}' /proc/uptime; }
d=$(afterimage attach --data /run/g disk --ublk) || fail "attach"
# A device that nobody uses goes away with its agent.
sleep 99999 <"$d" &
cp /bin/afterimage /run/afterimage-new
for _ in $(seq "$ROUNDS"); do
    for how in kill replace; do
        from=$(now)
        if [ $how = kill ]; then kill -9 $safe; next=afterimage; else kill $safe; next=/run/afterimage-new; fi
        wait $safe 2>/dev/null
        agent $next
        dd if=/dev/zero "of=$d" bs=4k count=1 oflag=direct 2>/dev/null || fail "a write over $how"
        echo "stall $how $(($(now) - from))"
        answers /run/g
        afterimage wait --data /run/g disk --timeout 5m || fail "live after $how"
    done
done
