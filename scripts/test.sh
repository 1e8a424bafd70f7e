#!/bin/bash
# Runs every test: format, lints, unit and model tests, and the whole-system tests with real clients. Installs and builds what
# they need first (scripts/setup-debian.sh, vm-images/build.sh). Goes on after a failure, so that one run shows them all.
#
#   scripts/test.sh [--quick | --lab] [-- ARGUMENTS FOR CARGO TEST...]
#
# --quick   leaves out the whole-system tests (tests/tests)
# --lab     only the laboratory: those of them that boot guests
# With arguments for cargo test, `cargo test --workspace` is run once, with them.
#
# AFTERIMAGE_KILL_ROUNDS   how often the kill loops kill (default 50)
# AFTERIMAGE_LANES         how many test programs run at a time (default 2: most of them wait more than they compute)
# AFTERIMAGE_SEED          repeats the chance of a failed run
set -euo pipefail
cd "$(dirname "$0")/.."

quick= only=
case "${1:-}" in
    --quick) quick=1; shift ;;
    --lab) only=1; shift ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
[ "${1:-}" != -- ] || shift

# What each step and each test program said, and how it went.
logs=${CARGO_TARGET_DIR:-target}/test-logs
rm -rf "$logs"
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
export logs

# Runs one step and notes how it went and how long it took.
step() {
    local name=$1 start=$SECONDS result=ok
    shift
    echo "=== $name: $*"
    "$@" || result=FAILED
    printf '%-7s %5d s  %s\n' "$result" $((SECONDS - start)) "$name" >>"$logs/steps"
    [ "$result" = ok ]
}

# The kernel's exact package goes out of date with apt's lists: then fetch them and try once more.
guest() { vm-images/build.sh || { scripts/setup-debian.sh --refresh && vm-images/build.sh; }; }

# What the whole-system tests want of Debian.
machines() {
    step "test guest" guest || true
    step "newer clients" scripts/newer-clients.sh || true
    # For the package; without root the test that needs it says so.
    [ "$(id -u)" != 0 ] || step "Debian" scripts/debian-root.sh "${AFTERIMAGE_DEBIAN:-trixie}" || true
}

# Runs one test program, or the tests within the crates (units), and shows what it said when it is done: two that run at a time are not mixed.
program() {
    local name=$1 start result=ok which=(--test "$1")
    start=$(date +%s)
    case "$name" in
        units) which=(--lib --bins --examples) ;;
        docs) which=(--doc) ;;
    esac
    run() { cargo test --workspace --no-fail-fast "${which[@]}" >"$logs/$name.log" 2>&1; }
    run || result=FAILED
    # An emulator can wreck its guest (seen once, in QEMU 7.2: RIP 0 and impossible flags in the
    # worker of virtio-blk, in a kernel that runs nothing of ours). With KVM nothing is tried again.
    if [ $result = FAILED ] && ! [ -w /dev/kvm ] && grep -q 'RIP: 0010:0x0$' "$logs/$name.log"; then
        mv "$logs/$name.log" "$logs/$name.first.log"
        echo "=== $name: the kernel of an emulated guest crashed, so it is run once more; see $name.first.log"
        result=again
        run || result=FAILED
    fi
    (
        flock 9
        echo "=== $name"
        cat "$logs/$name.log"
        printf '%s %d %d %s\n' "$result" "$start" "$(date +%s)" "$name" >>"$logs/programs"
    ) 9>"$logs/lock"
}
export -f program

# The laboratory, which is what boots guests, and what else takes long come first, so that no lane is left alone with them.
lab="ublk apps files attached failover_lab systemd guest_root guest_ext4 guest_agents guest_lab kernel_nbd"
programs() {
    local names others folders=(blockdev/*/tests common/*/tests appliance/tests mgmt/tests tools/tests tests/sim/tests tests/fuzz/tests)
    [ -n "$quick" ] || folders+=(tests/tests)
    names=$(find "${folders[@]}" -maxdepth 1 -name '*.rs' -printf '%f\n' 2>/dev/null | sed 's/\.rs$//' | sort -u)
    others=$(for name in $lab kill_loop roles_kill seeds; do echo "$name"; done)
    if [ -n "$only" ]; then
        printf '%s\n' $lab
    else
        for name in $others; do grep -x "$name" <<<"$names" || true; done
        printf '%s\n' units docs
        grep -vxF "$others" <<<"$names"
    fi | xargs -P "${AFTERIMAGE_LANES:-2}" -n 1 bash -c 'program "$0"'
    ! grep -q '^FAILED' "$logs/programs"
}

step "set-up" scripts/setup-debian.sh || true
if [ -z "$quick" ]; then
    machines >"$logs/machines.log" 2>&1 &
    trap 'kill %1 2>/dev/null || true' EXIT
fi
if [ -z "$only" ]; then
    step "format" cargo fmt --all --check || true
    step "lints" cargo clippy --workspace --all-targets -- -D warnings || true
fi
step "build" cargo build --workspace --lib --bins --tests --examples || true
if [ -z "$quick" ]; then
    wait
    cat "$logs/machines.log"
fi
if [ $# -gt 0 ]; then
    step "tests" cargo test --workspace --no-fail-fast "$@" || true
else
    step "tests" programs || true
fi

# Seconds of each test program that took ten or more, and of the laboratory from its first guest to its last.
times() {
    awk -v lab=" $lab " '
        {took = $3 - $2}
        took >= 10 || $1 != "ok" {printf "%-7s %5d s    %s\n", $1, took, $4}
        index(lab, " " $4 " ") {
            if (!first || $2 < first) first = $2
            if ($3 > last) last = $3
        }
        END {printf "%13d s    of the laboratory%s\n", last - first, (last - first > 900 ? ", which is to take 900 at most" : "")}' "$1"
}

# Of each failed test program, why: the logs of the others may stand in between.
failures() {
    awk '$1 == "FAILED" {print $4}' "$1" | while read -r name; do
        echo "=== why $name failed"
        # Without backtraces; what a test shows of its processes can be long.
        grep -A 12 -E '^thread .* panicked at|^error' "$logs/$name.log" | grep -vE '^ +([0-9]+: |at )' | cut -c -400 | head -n 60 || true
    done
}

echo
[ ! -s "$logs/programs" ] || failures "$logs/programs"
echo "=== summary"
cat "$logs/steps"
[ ! -s "$logs/programs" ] || times "$logs/programs"
if grep -q '^FAILED' "$logs/steps"; then
    echo "there are failures, see above"
    exit 1
fi
echo "all passed"
