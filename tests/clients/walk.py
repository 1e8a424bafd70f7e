#!/usr/bin/python3
"""Walks every NBD command and flag that libnbd can send, against one export, and keeps a model of its bytes.

    walk.py URI

The model is checked after every command and once more, whole, at the end. Everything is done under every way of
speaking (oldest handshake, simple replies, structured replies, extended headers where this libnbd has them). Prints the
number of checks; any difference is an exception and exit code 1.
"""

import errno
import sys

import checks
import nbd
from checks import chance, check, seed

KIB, MIB = 1 << 10, 1 << 20
LARGEST = 32 * MIB  # the longest request that every server takes


def expect_error(allowed, action, *what):
    """The command must fail with one of these errors, and the connection must live on."""
    try:
        action()
    except nbd.Error as error:
        check(error.errnum in allowed, *what, "gave", error, "instead of", sorted(allowed))
        return
    check(False, *what, "was accepted")


def connect(uri, prepare=lambda handle: None):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    prepare(handle)
    handle.connect_uri(uri)
    return handle


class Disk:
    """One connection and the bytes that it should find."""

    def __init__(self, handle, model):
        self.handle, self.model, self.size = handle, model, len(model)

    def place(self, most=256 * KIB):
        """A random range, as unaligned as it comes."""
        length = chance.choice([1, 511, 512, 513, 4095, 4096, 4097, chance.randint(1, most), most])
        return chance.randrange(0, self.size - length), length

    def see(self, offset, length, what):
        for start in range(offset, offset + length, LARGEST):
            piece = min(LARGEST, offset + length - start)
            got = self.handle.pread(piece, start)
            check(got == self.model[start : start + piece], what, "read back wrong at", start, "+", piece)

    def around(self, offset, length, what):
        start = max(0, offset - 700)
        self.see(start, min(self.size, offset + length + 700) - start, what)

    def write(self, flags=0, place=None):
        offset, length = place or self.place()
        data = chance.randbytes(length)
        self.handle.pwrite(data, offset, flags)
        self.model[offset : offset + length] = data
        self.around(offset, length, f"write flags={flags}")

    def zero(self, flags):
        offset, length = self.place(MIB)
        try:
            self.handle.zero(length, offset, flags)
        except nbd.Error as error:
            slow = flags & nbd.CMD_FLAG_FAST_ZERO and error.errnum in (errno.EOPNOTSUPP, errno.ENOTSUP)
            check(slow, f"zero flags={flags} failed:", error)
        else:
            self.model[offset : offset + length] = bytes(length)
        self.around(offset, length, f"zero flags={flags}")

    def trim(self, flags):
        offset, length = self.place(MIB)
        self.handle.trim(length, offset, flags)
        # What a trimmed byte reads is open: as before, or zero. From then on it must stay.
        now = self.handle.pread(length, offset)
        before = self.model[offset : offset + length]
        check(all(n in (0, b) for n, b in zip(now, before)), "trim made up bytes at", offset)
        self.model[offset : offset + length] = now
        self.around(offset, length, f"trim flags={flags}")


def every_command(disk):
    handle = disk.handle
    flags_of_write = [0] + ([nbd.CMD_FLAG_FUA] if handle.can_fua() else [])
    for flags in flags_of_write * 4:
        disk.write(flags)
    if handle.can_flush():
        handle.flush()
    if handle.can_trim():
        for flags in flags_of_write:
            disk.trim(flags)
    if handle.can_zero():
        kinds = [0, nbd.CMD_FLAG_NO_HOLE] + ([nbd.CMD_FLAG_FAST_ZERO] if handle.can_fast_zero() else [])
        for flags in [kind | fua for kind in kinds for fua in flags_of_write]:
            disk.zero(flags)
    if handle.can_cache():
        offset, length = disk.place()
        handle.cache(length, offset)
        disk.around(offset, length, "cache")
    if handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
        block_status(disk)
    if handle.get_structured_replies_negotiated():
        structured_read(disk)
    disk.see(disk.size - 1, 1, "last byte")


def structured_read(disk):
    for flags in (0, nbd.CMD_FLAG_DF if disk.handle.can_df() else 0):
        offset, length = disk.place(MIB)
        pieces = []

        def chunk(data, start, status, error):
            check(status in (nbd.READ_DATA, nbd.READ_HOLE), "a piece of a read failed:", status)
            check(status != nbd.READ_HOLE or not any(data), "a hole is not zero")
            pieces.append((start, bytes(data)))
            return 0

        disk.handle.pread_structured(length, offset, chunk, flags)
        check(flags == 0 or len(pieces) == 1, "DF was answered in", len(pieces), "pieces")
        place = offset
        for start, data in sorted(pieces):
            check(start == place, "pieces of a read overlap or leave a gap at", place)
            check(data == disk.model[start : start + len(data)], "a piece of a read is wrong at", start)
            place += len(data)
        check(place == offset + length, "a read came short")


def block_status(disk):
    def ask(offset, length, flags):
        found = []

        def extents(context, start, entries, error):
            if context == nbd.CONTEXT_BASE_ALLOCATION:
                check(start == offset, "block status begins at", start, "instead of", offset)
                found.extend(zip(entries[0::2], entries[1::2]))
            return 0

        disk.handle.block_status(length, offset, extents, flags)
        return found

    offset, length = disk.place(MIB)
    one = ask(offset, length, nbd.CMD_FLAG_REQ_ONE)
    check(len(one) == 1 and 0 < one[0][0] <= length, "REQ_ONE gave", one)
    place = 0
    while place < disk.size:
        entries = ask(place, disk.size - place, 0)
        check(entries and all(length > 0 for length, _ in entries), "block status makes no progress at", place)
        for length, flags in entries:
            if flags & nbd.STATE_ZERO:
                end = min(place + length, disk.size)
                check(not any(disk.model[place:end]), "called zero, but is not:", place, "+", length)
            place += length


def large_requests(disk):
    biggest = min(LARGEST, disk.size - 4096 - 1)
    for offset in (0, 4097):
        disk.write(place=(offset, biggest))


def bad_requests(disk):
    """What a sane client never sends: refused, and the connection goes on in step."""
    handle, size = disk.handle, disk.size
    handle.set_strict_mode(0)
    beyond = {errno.EINVAL, errno.ENOSPC}
    expect_error({errno.EINVAL}, lambda: handle.pread(4096, size - 1), "a read beyond the end")
    expect_error(beyond, lambda: handle.pwrite(bytes(4096), size - 1), "a write beyond the end")
    expect_error(beyond, lambda: handle.pwrite(bytes(512), 1 << 62), "a write far beyond the end")
    if handle.can_zero():
        expect_error(beyond, lambda: handle.zero(4096, size), "zeroes beyond the end")
    if handle.can_trim():
        expect_error(beyond, lambda: handle.trim(4096, size), "a trim beyond the end")
    expect_error({errno.EINVAL}, lambda: handle.pread(512, 0, 1 << 12), "a read with an unknown flag")
    expect_error({errno.EINVAL}, lambda: handle.pwrite(bytes(512), 0, 1 << 12), "a write with an unknown flag")
    disk.around(0, 4096, "after bad requests")
    handle.set_strict_mode(nbd.STRICT_MASK)
    disk.write()


def many_in_flight(disk):
    """Disjoint writes, all sent before the first answer is read, with reads of other places among them."""
    handle, slot = disk.handle, 64 * KIB
    slots = chance.sample(range(disk.size // slot), 128)
    writes, reads = slots[:64], slots[64:]
    cookies = []
    for target, source in zip(writes, reads):
        data = chance.randbytes(chance.randint(1, slot))
        disk.model[target * slot : target * slot + len(data)] = data
        cookies.append((handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), target * slot), None, 0))
        buffer = nbd.Buffer(slot)
        cookies.append((handle.aio_pread(buffer, source * slot), buffer, source * slot))
    while cookies:
        left = []
        for cookie, buffer, offset in cookies:
            if not handle.aio_command_completed(cookie):
                left.append((cookie, buffer, offset))
            elif buffer is not None:
                check(buffer.to_bytearray() == disk.model[offset : offset + slot], "a read in flight is wrong at", offset)
        cookies = left
        if cookies:
            handle.poll(-1)
    for target in writes:
        disk.see(target * slot, slot, "written in flight")


def several_connections(uri, model):
    """With multi-conn, what one connection wrote and another flushed, a third one sees."""
    handles = [connect(uri) for _ in range(4)]
    check(handles[0].can_multi_conn(), "the export does not offer multi-conn")
    for turn in range(16):
        writer, flusher, reader = (Disk(handles[(turn + n) % 4], model) for n in range(3))
        writer.write()
        flusher.handle.flush()
        offset, length = reader.place()
        reader.see(offset, length, "over another connection")
    for handle in handles:
        handle.shutdown()


def negotiate(uri):
    """Every option of the handshake, and a second choice after a wrong one."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    name = handle.get_export_name()
    names = []
    handle.opt_list(lambda export, description: names.append(export) or 0)
    check(name in names, "LIST does not name", name, "but", names)
    handle.opt_info()
    size = handle.get_size()
    check(size > 0 and handle.get_block_size(nbd.SIZE_PREFERRED) in (0, 512, 4096, 65536, 131072, 1 << 20), "INFO")
    contexts = []
    handle.opt_list_meta_context(lambda context: contexts.append(context) or 0)
    check(nbd.CONTEXT_BASE_ALLOCATION in contexts, "LIST_META_CONTEXT gave", contexts)
    handle.set_export_name(name + "-is-not-there")
    expect_error({errno.ENOENT, errno.EINVAL, 0, errno.ENOTSUP}, handle.opt_info, "INFO of an unknown export")
    expect_error({errno.ENOENT, errno.EINVAL, 0, errno.ENOTSUP}, handle.opt_go, "GO to an unknown export")
    handle.set_export_name(name)
    handle.opt_go()
    check(handle.get_size() == size, "GO and INFO disagree")
    handle.shutdown()
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    handle.opt_abort()
    return size


def main(uri):
    size = negotiate(uri)
    handle = connect(uri)
    model = bytearray()
    while len(model) < size:
        model += handle.pread(min(16 * MIB, size - len(model)), len(model))
    handle.shutdown()
    newer = hasattr(nbd.NBD, "set_request_extended_headers")
    ways = {
        "structured replies": lambda h: newer and h.set_request_extended_headers(False),
        "simple replies": lambda h: h.set_request_structured_replies(False),
        "no fixed newstyle": lambda h: h.set_handshake_flags(0),
        "fixed newstyle with padding": lambda h: h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE),
    }
    if newer:
        ways["extended headers"] = lambda h: None
    for way, prepare in ways.items():
        disk = Disk(connect(uri, prepare), model)
        check(disk.handle.get_size() == size, way, "tells another size")
        if newer:
            extended = disk.handle.get_extended_headers_negotiated()
            check(extended == (way in ("extended headers", "fixed newstyle with padding")), way, "gave extended headers:", extended)
        try:
            for _ in range(4):
                every_command(disk)
            bad_requests(disk)
            many_in_flight(disk)
            large_requests(disk)
            disk.handle.shutdown()
        except Exception:
            print(f"walk: while speaking with {way}", file=sys.stderr)
            raise
    several_connections(uri, model)
    disk = Disk(connect(uri), model)
    disk.see(0, size, "the whole disk")
    disk.handle.shutdown()
    print(f"walk: {checks.done} checks")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except BaseException:
        print(f"walk: repeat with AFTERIMAGE_SEED={seed}", file=sys.stderr)
        raise
