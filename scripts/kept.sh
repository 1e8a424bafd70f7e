# Sourced by scripts that build a folder once and find it again.
#
#   kept CACHE NAME CHECK [--force]
#
# Calls `build WORK`, which leaves the folder as WORK/out, unless CACHE/NAME has a CHECK in it already; prints the folder. One
# builds at a time, and who waited finds it done. A failed build leaves nothing.
kept() {
    local cache out
    mkdir -p "$1"
    cache=$(cd "$1" && pwd)
    out=$cache/$2
    exec 9>"$cache/lock"
    flock 9
    [ "${4:-}" != --force ] || rm -rf "$out"
    if [ ! -e "$out/$3" ]; then
        kept_work=$(mktemp -d "$cache/build.XXXXXX")
        trap 'rm -rf "$kept_work"' EXIT
        build "$kept_work"
        rm -rf "$out"
        mv "$kept_work/out" "$out"
    fi
    echo "$out"
}
