#!/bin/bash
# Runs every test: format, lints, unit and model tests, and the whole-system tests with real clients. Installs and builds what
# they need first (scripts/setup-debian.sh, vm-images/build.sh). Goes on after a failure, so that one run shows them all.
#
#   scripts/test.sh [--quick] [-- ARGUMENTS FOR CARGO TEST...]
#
# --quick   leaves out the whole-system tests (package afterimage-tests)
#
# AFTERIMAGE_KILL_ROUNDS   how often the kill loop kills (default 50)
# AFTERIMAGE_SEED          repeats the chance of a failed run
set -euo pipefail
cd "$(dirname "$0")/.."

quick=
case "${1:-}" in
    --quick) quick=1; shift ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
[ "${1:-}" != -- ] || shift

steps=()
failed=0
# Runs one step and notes how it went and how long it took.
step() {
    local name=$1 start=$SECONDS result=ok
    shift
    echo "=== $name: $*"
    "$@" || { result=FAILED; failed=1; }
    steps+=("$(printf '%-7s %5d s  %s' "$result" $((SECONDS - start)) "$name")")
    [ "$result" = ok ]
}

# The kernel's exact package goes out of date with apt's lists: then fetch them and try once more.
guest() { vm-images/build.sh || { scripts/setup-debian.sh --refresh && vm-images/build.sh; }; }

tests=(cargo test --workspace --no-fail-fast)
[ -z "$quick" ] || tests+=(--exclude afterimage-tests)

step "set-up" scripts/setup-debian.sh || true
[ -n "$quick" ] || step "test guest" guest || true
[ -n "$quick" ] || step "newer clients" scripts/newer-clients.sh || true
# For the package; without root the test that needs it says so.
[ -n "$quick" ] || [ "$(id -u)" != 0 ] || step "Debian" scripts/debian-root.sh "${AFTERIMAGE_DEBIAN:-trixie}" || true
step "format" cargo fmt --all --check || true
step "lints" cargo clippy --workspace --all-targets -- -D warnings || true
step "build" cargo build --workspace --bins || true
log=${CARGO_TARGET_DIR:-target}/test.log
tests() { "${tests[@]}" "$@" 2>&1 | tee "$log"; }
step "tests" tests "$@" || true

# Seconds of each test program that took ten or more; the laboratory is what boots guests.
lab="apps attached failover_lab files guest_agents guest_ext4 guest_lab guest_root kernel_nbd systemd ublk"
times() {
    awk -v lab=" $lab " '
        /^ *Running / {name = $2 == "unittests" ? $4 : $2; sub(/.*\//, "", name); sub(/(-[0-9a-f]*\)|\.rs)$/, "", name)}
        /^test result: / {
            took = $NF + 0
            if (took >= 10) printf "%15d s  %s\n", took, name
            if (index(lab, " " name " ")) all += took
        }
        END {printf "%15d s  of the laboratory%s\n", all, (all > 900 ? ", which is to take 900 at most" : "")}' "$1"
}

echo
echo "=== summary"
printf '%s\n' "${steps[@]}"
[ ! -s "$log" ] || times "$log"
if [ "$failed" = 0 ]; then echo "all passed"; else echo "there are failures, see above"; fi
exit "$failed"
