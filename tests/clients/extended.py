#!/usr/bin/python3
"""Uses what only extended headers can express, with libnbd 1.18 or later, against one export of more than 4 GiB that
reads as zeroes, and keeps a model of its bytes.

    extended.py URI MODEL

Every connection must have negotiated extended headers, or it is an error. At the end the model is written to the file
MODEL, as a raw image. Prints the number of checks; any difference is an exception and exit code 1.
"""

import errno
import sys

import checks
import nbd
from checks import chance, check, seed

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LARGEST = 32 * MIB
BLOCK = 64 * KIB
ALLOCATION = nbd.CONTEXT_BASE_ALLOCATION


def expect_error(number, action, *what):
    """The command must fail with this error, and the connection must live on."""
    try:
        action()
    except nbd.Error as error:
        check(error.errnum == number, *what, "gave", error, "instead of", errno.errorcode[number])
        return
    check(False, *what, "was accepted")


def connect(uri, extended=True):
    handle = nbd.NBD()
    handle.add_meta_context(ALLOCATION)
    handle.set_request_extended_headers(extended)
    handle.connect_uri(uri)
    check(handle.get_extended_headers_negotiated() == extended, "extended headers were not negotiated as asked")
    return handle


def server_refuses(handle):
    """Lets the server refuse what the library would not send. Only the flag of a payload is still set by itself."""
    handle.set_strict_mode(nbd.STRICT_AUTO_FLAG)


class Model:
    """The bytes of a large disk of which little is not zero: blocks that were written, by number."""

    def __init__(self, size):
        self.size, self.blocks = size, {}

    def write(self, offset, data):
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, BLOCK)
            piece = data[done : done + BLOCK - start]
            self.blocks.setdefault(number, bytearray(BLOCK))[start : start + len(piece)] = piece
            done += len(piece)

    def zero(self, offset, length):
        end = offset + length
        for number in [n for n in self.blocks if n * BLOCK < end and (n + 1) * BLOCK > offset]:
            start = max(offset - number * BLOCK, 0)
            stop = min(end - number * BLOCK, BLOCK)
            self.blocks[number][start:stop] = bytes(stop - start)

    def read(self, offset, length):
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        data = b"".join(bytes(self.blocks.get(n, bytes(BLOCK))) for n in range(first, last + 1))
        return data[offset - first * BLOCK :][:length]

    def is_zero(self, offset, length):
        # Not block by block: a range may hold tens of thousands of them.
        for number in self.blocks:
            start, stop = max(offset, number * BLOCK), min(offset + length, (number + 1) * BLOCK)
            if start < stop and any(self.blocks[number][start - number * BLOCK : stop - number * BLOCK]):
                return False
        return True

    def save(self, path):
        with open(path, "wb") as file:
            file.truncate(self.size)
            for number, data in self.blocks.items():
                file.seek(number * BLOCK)
                file.write(data[: self.size - number * BLOCK])


class Disk:
    def __init__(self, handle, model):
        self.handle, self.model = handle, model

    def see(self, offset, length, what):
        check(self.handle.pread(length, offset) == self.model.read(offset, length), what, "at", offset, "+", length)

    def see_everything(self, what):
        """All that was ever written, a little around it, and the ends."""
        size = self.model.size
        places = {n * BLOCK for n in self.model.blocks} | {(n + 1) * BLOCK for n in self.model.blocks}
        for start in sorted(places | {0, size - BLOCK}):
            if start < size:
                self.see(start, min(BLOCK, size - start), what)

    def write(self, offset, length, flags=0):
        data = chance.randbytes(length)
        self.handle.pwrite(data, offset, flags)
        self.model.write(offset, data)

    def scatter(self):
        """Data at both ends, across the first 4 GiB, and anywhere."""
        size = self.model.size
        for offset in (0, size - 70001, 4 * GIB - 4097, 2 * GIB - 1):
            self.write(offset, 70001)
        for _ in range(20):
            self.write(chance.randrange(size - BLOCK), chance.randint(1, BLOCK))

    def extents(self, ask, offset, length, flags=0):
        found = []

        def collect(context, at, entries, error):
            check(context == ALLOCATION and at == offset, "block status of", context, "at", at)
            found.extend(entries)

        ask(length, offset, collect, flags)
        return found

    def see_map(self, ask, what):
        """The status of the whole disk in one call: it covers the disk, and calls nothing zero that is not."""
        entries = self.extents(ask, 0, self.model.size)
        check(sum(length for length, _ in entries) == self.model.size, what, "does not cover the disk:", entries)
        place = 0
        for length, flags in entries:
            check(length > 0 and flags >> 2 == 0, what, "holds a strange extent:", length, flags)
            zero = not flags & nbd.STATE_ZERO or self.model.is_zero(place, length)
            check(zero, what, "calls zero what is not:", place, "+", length)
            place += length
        return entries


def large_ranges(uri, model):
    """Zero, trim, cache and block status of more than 4 GiB, each in one request."""
    disk, size = Disk(connect(uri), model), model.size
    handle = disk.handle
    status, hole = handle.block_status_64, nbd.STATE_HOLE | nbd.STATE_ZERO
    check(disk.see_map(status, "the map of an empty disk") == [(size, hole)], "an empty disk is not one hole")
    long = 4 * GIB + 3 * MIB + 12345
    for start in (777, size - long):
        for command, flags in [
            (handle.zero, 0),
            (handle.zero, nbd.CMD_FLAG_FUA),
            (handle.zero, nbd.CMD_FLAG_FAST_ZERO),
            (handle.trim, 0),
            (handle.trim, nbd.CMD_FLAG_FUA),
        ]:
            disk.scatter()
            disk.see_map(status, "the map before a large command")
            command(long, start, flags)
            model.zero(start, long)
            disk.see_everything(f"{command.__name__} flags={flags} of {long}")
            disk.see_map(status, "the map after a large command")
    disk.scatter()
    handle.zero(size, 0)
    model.zero(0, size)
    disk.see_everything("zero of the whole disk")
    check(disk.extents(status, 0, size, nbd.CMD_FLAG_REQ_ONE) == [(size, hole)], "a zeroed disk is not one hole")
    disk.scatter()
    handle.cache(size, 0)
    disk.see_everything("cache of the whole disk")
    one = disk.extents(status, 5 * MIB, 4 * GIB + 5 * MIB, nbd.CMD_FLAG_REQ_ONE)
    check(len(one) == 1 and 0 < one[0][0] <= 4 * GIB + 5 * MIB, "REQ_ONE gave", one)
    handle.flush()
    handle.shutdown()


def filtered_status(uri, model):
    """Block status with a payload that selects contexts, and the old call with 32-bit extents on the same connection."""
    disk = Disk(connect(uri), model)
    handle = disk.handle
    check(handle.can_block_status_payload(), "block status takes no payload")
    everything = disk.see_map(handle.block_status_64, "the map")

    def filtered(length, offset, collect, flags):
        handle.block_status_filter(length, offset, [ALLOCATION], collect, flags)

    check(disk.see_map(filtered, "the filtered map") == everything, "the filter changes the answer")
    one = disk.extents(filtered, 4 * GIB - 5, 5 * MIB, nbd.CMD_FLAG_REQ_ONE)
    check(len(one) == 1 and 0 < one[0][0] <= 5 * MIB, "filtered REQ_ONE gave", one)
    server_refuses(handle)
    expect_error(errno.EINVAL, lambda: filtered(8, model.size, lambda *a: 0, 0), "a filtered status beyond the end")
    expect_error(
        errno.EINVAL,
        lambda: handle.block_status_filter(8, 0, [], lambda *a: 0),
        "a filter that selects nothing",
    )
    disk.see(0, BLOCK, "after refusals")
    handle.shutdown()
    disk = Disk(connect(uri), model)
    pairs = []
    disk.handle.block_status(MIB, 4 * GIB - MIB // 2, lambda c, at, entries, e: pairs.extend(entries))
    check(len(pairs) >= 2 and sum(pairs[0::2]) > 0, "the old block status gave", pairs)
    disk.handle.shutdown()


def long_transfers(uri, model):
    disk = Disk(connect(uri), model)
    handle = disk.handle
    for offset in (0, 4 * GIB - 16 * MIB - 1, model.size - LARGEST):
        disk.write(offset, LARGEST, nbd.CMD_FLAG_FUA)
        disk.see(offset, LARGEST, "32 MiB")
    for flags in (0, nbd.CMD_FLAG_DF):
        chunks = []
        collect = lambda data, at, status, e: chunks.append((at, bytes(data), status))
        handle.pread_structured(LARGEST, 0, collect, flags)
        check(chunks == [(0, model.read(0, LARGEST), nbd.READ_DATA)], "32 MiB came in pieces")
    server_refuses(handle)
    expect_error(errno.EOVERFLOW, lambda: handle.pread(LARGEST + 1, 0), "a read of more than 32 MiB")
    expect_error(errno.EINVAL, lambda: handle.pwrite(bytes(LARGEST + 1), 0), "a write of more than 32 MiB")
    disk.see(0, BLOCK, "after refusals")
    handle.shutdown()


def refusals(uri, model):
    """Ranges that 64 bits can say and the disk does not have."""
    disk, size = Disk(connect(uri), model), model.size
    handle = disk.handle
    server_refuses(handle)
    for length, offset in [(size + 1, 0), (1 << 63, 0), (4 * GIB, size - 4 * GIB + 1), ((1 << 63) - 1, (1 << 63) - 1)]:
        expect_error(errno.ENOSPC, lambda: handle.zero(length, offset), "zeroes", offset, length)
        expect_error(errno.EINVAL, lambda: handle.trim(length, offset), "a trim", offset, length)
        expect_error(errno.EINVAL, lambda: handle.cache(length, offset), "a cache", offset, length)
        status = lambda: handle.block_status_64(length, offset, lambda *a: 0)
        expect_error(errno.EINVAL, status, "a block status", offset, length)
    expect_error(errno.EINVAL, lambda: handle.zero(0, 0), "zeroes of no bytes")
    expect_error(errno.EINVAL, lambda: handle.pread(512, 0, 1 << 12), "a read with an unknown flag")
    expect_error(errno.EINVAL, lambda: handle.pwrite(bytes(512), 0, 1 << 12), "a write with an unknown flag")
    disk.see_everything("after refusals")
    handle.shutdown()


def in_flight(uri, model):
    """Hundreds of commands of every kind at once, over several connections, some of them with old headers."""
    handles = [connect(uri), connect(uri), connect(uri, extended=False), connect(uri)]
    check(handles[0].can_multi_conn(), "the export does not offer multi-conn")
    slot = 16 * MIB
    slots = list(range(model.size // slot))
    chance.shuffle(slots)
    pending = []
    for turn, number in enumerate(slots):
        handle, offset = handles[turn % 4], number * slot + chance.randrange(4096)
        kind = turn % 3
        if kind == 0:
            data = chance.randbytes(chance.randint(1, 2 * BLOCK))
            model.write(offset, data)
            pending.append((handle, handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset), None))
        elif kind == 1:
            model.zero(offset, slot // 2)
            pending.append((handle, handle.aio_zero(slot // 2, offset), None))
        else:
            buffer = nbd.Buffer(BLOCK)
            cookie = handle.aio_pread(buffer, offset)
            pending.append((handle, cookie, (buffer, model.read(offset, BLOCK))))
    while pending:
        left = []
        for handle, cookie, expected in pending:
            if not handle.aio_command_completed(cookie):
                left.append((handle, cookie, expected))
            elif expected:
                check(bytes(expected[0].to_bytearray()) == expected[1], "a read in flight is wrong")
        pending = left
        for handle in handles:
            if handle.aio_in_flight() > 0:
                handle.poll(100)
    # What one connection wrote and another one flushed, a third one sees.
    handles[1].flush()
    for handle in handles:
        Disk(handle, model).see_everything("over another connection")
        handle.shutdown()


def negotiation(uri):
    """Extended headers after structured replies, once and again, and what they exclude."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_request_structured_replies(False)
    handle.set_request_meta_context(False)
    handle.connect_uri(uri)
    check(handle.opt_structured_reply(), "structured replies were refused")
    check(handle.opt_extended_headers(), "extended headers were refused after structured replies")
    check(not handle.opt_structured_reply(), "structured replies were granted after extended headers")
    check(handle.get_extended_headers_negotiated(), "extended headers were lost again")
    contexts = []
    handle.add_meta_context(ALLOCATION)
    handle.opt_set_meta_context(contexts.append)
    check(contexts == [ALLOCATION], "SET_META_CONTEXT gave", contexts)
    handle.opt_info()
    size = handle.get_size()
    check(handle.can_block_status_payload(), "the payload of block status is not announced")
    handle.opt_go()
    check(handle.get_size() == size and handle.can_meta_context(ALLOCATION), "GO and INFO disagree")
    handle.shutdown()
    handle = nbd.NBD()
    handle.connect_uri(uri)
    check(handle.get_extended_headers_negotiated(), "extended headers need a context")
    check(not handle.can_block_status_payload(), "a payload of block status is announced without a context")
    handle.shutdown()
    return size


def main(uri, path):
    model = Model(negotiation(uri))
    check(model.size > 4 * GIB + 64 * MIB, "the disk is too small for this")
    for part in (large_ranges, filtered_status, long_transfers, refusals, in_flight):
        part(uri, model)
    model.save(path)
    print(f"extended: {checks.done} checks")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except BaseException:
        print(f"extended: repeat with AFTERIMAGE_SEED={seed}", file=sys.stderr)
        raise
