# A machine that keeps a database (SQLite with a write-ahead log; every commit is synced) on the ext4 of /dev/vda. Sourced by the
# scripts of the test.
#
# Two such machines depend on one another: the leader commits a number, hands it to the follower over TCP, which commits it as well
# and says so, and only then comes the next one. At any one moment the follower has the leader's number, or the one before.
fail() { echo "ledger: failed: $*"; exit 1; }

database=/data/ledger.db
sqlite() { /sbin/sqlite3 -batch -cmd "PRAGMA synchronous=FULL" "$@"; }

# The disk gets a file system and the database.
create_ledger() {
    /sbin/mke2fs -q -t ext4 -F /dev/vda || fail mke2fs
    mount_ledger
    sqlite "$database" "PRAGMA journal_mode=WAL; CREATE TABLE number (n INTEGER NOT NULL); INSERT INTO number VALUES (0);
        CREATE TABLE entry (n INTEGER PRIMARY KEY, body BLOB NOT NULL); INSERT INTO entry VALUES (0, 'first');
        CREATE TABLE alone (n INTEGER PRIMARY KEY, body BLOB NOT NULL);" >/dev/null || fail create
    sync
}

mount_ledger() {
    mkdir -p /data
    mount -t ext4 /dev/vda /data || fail mount
}

# Says what the database holds, once it has been checked: a number is there with all entries up to it, or not at all.
show_ledger() {
    local sound holds
    sound=$(sqlite "$database" "PRAGMA integrity_check") || fail "integrity check: $sound"
    [ "$sound" = ok ] || fail "integrity check: $sound"
    holds=$(sqlite -separator " " "$database" "SELECT (SELECT n FROM number), (SELECT count(*) - 1 FROM entry),
        (SELECT max(n) FROM entry), (SELECT count(*) FROM alone)") || fail "select: $holds"
    # shellcheck disable=SC2086
    set -- $holds
    [ "$1" = "$2" ] && [ "$1" = "$3" ] || fail "a torn commit: number $1, $2 entries, the last is $3"
    echo "ledger: holds $1 and $4"
}

# One process of SQLite for all that follows: starting one takes an emulated processor longer than a commit.
open_database() {
    mkfifo /run/database.in /run/database.out
    sqlite "$database" </run/database.in >/run/database.out 2>&1 &
    exec 3>/run/database.in 4</run/database.out
}

ask() {
    echo "$1" >&3
    read -r answer <&4 || fail "the database has ended"
}

commit() {
    ask "BEGIN IMMEDIATE; UPDATE number SET n = $1; INSERT OR IGNORE INTO entry VALUES ($1, randomblob(300)); COMMIT; SELECT n FROM number;"
    [ "$answer" = "$1" ] || fail "commit $1: $answer"
}

# Its end of the connection: descriptors 5 (to the peer) and 6 (from it).
connect() {
    mkfifo /run/peer.in /run/peer.out
    nc "$@" </run/peer.in >/run/peer.out &
    exec 5>/run/peer.in 6</run/peer.out
}

# Waits so many seconds without starting a program: machines that share few processors must leave some to one another.
pause() { read -r -t "$1" _; }

# `lead PORT`: of the host, where the follower is reached. The number that it has may be the one that the follower lacks.
lead() {
    local n other
    open_database
    connect 10.0.2.2 "$1"
    ask "SELECT n FROM number;"
    n=$answer
    while :; do
        echo "$n" >&5
        read -r other <&6 || fail "the follower is gone"
        [ "$other" = "$n" ] || fail "the follower has $other, not $n"
        echo "ledger: both have $n"
        pause 0.03
        n=$((n + 1))
        commit "$n"
    done
}

follow() {
    local n
    open_database
    connect -l -p 7
    until netstat -ltn | grep -q ':7 '; do sleep 0.1; done
    echo "ledger: listens"
    while read -r n <&6; do
        commit "$n"
        echo "$n" >&5
    done
}

# Works without the other machine.
work_alone() {
    local n
    open_database
    ask "SELECT count(*) FROM alone;"
    n=$answer
    while :; do
        n=$((n + 1))
        ask "INSERT INTO alone VALUES ($n, randomblob(300)); SELECT count(*) FROM alone;"
        [ "$answer" = "$n" ] || fail "insert $n: $answer"
        echo "ledger: alone $n"
        pause 0.2
    done
}
