#!/bin/bash
# Goes on fuzzing: builds the targets with coverage, runs them on all processors, and adds what is new to the corpus.
#
#   scripts/fuzz.sh [TARGET...] [--seconds N] [--jobs N]
#
# Without TARGET all targets take their turn, N seconds each (default 60). --jobs: processes at once (default: one per processor).
# A finding is kept in target/fuzz/findings/TARGET, named, and replayed with
#   cargo run -p afterimage-fuzz -- run TARGET FILE
# `cargo run -p afterimage-fuzz -- list` names the targets. Stable Rust and a C++ compiler are enough.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=60 jobs=$(nproc) targets=()
while [ $# -gt 0 ]; do
    case "$1" in
        --seconds) seconds=$2; shift 2 ;;
        --jobs) jobs=$2; shift 2 ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "fuzz.sh: unknown option $1; --help names them" >&2; exit 2 ;;
        *) targets+=("$1"); shift ;;
    esac
done

# Coverage as libFuzzer wants it. With --target it stays away from build scripts and macros.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
folder=${AFTERIMAGE_FUZZ_DIR:-target/fuzz}
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --profile fuzz -p afterimage-fuzz --features engine --bin afterimage-fuzz-engine --target "$host" --target-dir "$folder"
engine=$folder/$host/fuzz/afterimage-fuzz-engine
list=$(AFTERIMAGE_FUZZ_TARGET=list "$engine")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cut -d' ' -f1 <<<"$list")

# What a target leaves when it ends or dies goes with this folder.
AFTERIMAGE_FUZZ_SCRATCH=$(mktemp -d /dev/shm/afterimage-fuzz-XXXXXX || mktemp -d)
export AFTERIMAGE_FUZZ_SCRATCH
trap 'rm -rf "$AFTERIMAGE_FUZZ_SCRATCH"' EXIT

failed=0
for target in "${targets[@]}"; do
    longest=$(awk -v t="$target" '$1 == t { print $2 }' <<<"$list")
    [ -n "$longest" ] || { echo "fuzz.sh: there is no target $target" >&2; exit 2; }
    corpus=tests/fuzz/corpus/$target work=$folder/work/$target found=$folder/findings/$target
    mkdir -p "$corpus" "$work" "$found"
    export AFTERIMAGE_FUZZ_TARGET=$target
    options=(-max_len="$longest" -timeout=30 -rss_limit_mb=2048 -artifact_prefix="$found/" -print_final_stats=1)
    echo "=== $target: $seconds s"
    if ! "$engine" "${options[@]}" -fork="$jobs" -max_total_time="$seconds" "$work" "$corpus" >"$folder/$target.log" 2>&1; then
        failed=1
        echo "FINDING, see $folder/$target.log. To run it again:"
        for file in "$found"/*; do echo "    cargo run -p afterimage-fuzz -- run $target $file"; done
    fi
    grep -E '^#[0-9]+: cov' "$folder/$target.log" | tail -1 || true
    # What adds coverage to the corpus goes there, small inputs first.
    "$engine" "${options[@]}" -set_cover_merge=1 "$corpus" "$work" >>"$folder/$target.log" 2>&1 || failed=1
    echo "    $(find "$corpus" -type f | wc -l) inputs, $(du -sb "$corpus" | cut -f1) bytes in $corpus"
done
exit "$failed"
