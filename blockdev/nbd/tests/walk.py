"""Walks every command and flag of an export with libnbd, in both reply styles, and checks what must be refused.

Arguments: the path of a unix socket that serves `disk` (writable, zeroed, at least 64 MiB) and `ro` (read-only).
"""

import errno
import random
import sys

import nbd

SOCKET = sys.argv[1]
MIB = 1 << 20


def connect(export, structured=True):
    h = nbd.NBD()
    h.set_export_name(export)
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    # The server, not the library, shall refuse what is wrong.
    h.set_strict_mode(0)
    h.connect_unix(SOCKET)
    return h


def refused(number, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        assert e.errnum == number, f"expected {errno.errorcode[number]}, got {e}"
        return
    raise AssertionError(f"{call.__name__}{args} was not refused")


def extents(h, offset, length, flags=0):
    found = []

    def collect(context, at, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        found.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, collect, flags)
    return found


def walk(structured):
    h = connect("disk", structured)
    assert h.get_structured_replies_negotiated() == structured
    for can in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"):
        assert getattr(h, f"can_{can}")(), can
    assert h.can_df() == structured and not h.is_read_only() and not h.is_rotational()
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    size = h.get_size()

    data = random.randbytes(70001)
    h.pwrite(data, 4095)
    assert h.pread(len(data), 4095) == data
    h.pwrite(b"durable", 0, nbd.CMD_FLAG_FUA)
    h.flush()
    h.cache(MIB, 0)
    h.trim(5000, 4095)
    h.trim(1, 4094, nbd.CMD_FLAG_FUA)
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE):
        h.pwrite(b"x" * 300, 9)
        h.zero(100, 100, flags)
        assert h.pread(300, 9) == b"x" * 91 + bytes(100) + b"x" * 109
    big = random.randbytes(32 * MIB)
    h.pwrite(big, size - len(big))
    assert h.pread(len(big), size - len(big)) == big
    h.zero(size, 0)
    assert h.pread(MIB, 0) == bytes(MIB)

    if structured:
        h.pwrite(data, MIB)
        assert h.pread(65536, MIB, nbd.CMD_FLAG_DF) == data[:65536]
        chunks = []
        h.pread_structured(len(data), MIB, lambda b, at, status, error: chunks.append((at, bytes(b), status)))
        assert chunks == [(MIB, data, nbd.READ_DATA)]
        hole = nbd.STATE_HOLE | nbd.STATE_ZERO
        assert extents(h, 0, 4 * MIB) == [(MIB, hole), (73728, 0), (3 * MIB - 73728, hole)]
        assert extents(h, 8192, 2 * MIB, nbd.CMD_FLAG_REQ_ONE) == [(MIB - 8192, hole)]
        refused(errno.EINVAL, h.block_status, MIB, size, lambda *args: 0)
    else:
        refused(errno.EINVAL, h.pread, 1, 0, nbd.CMD_FLAG_DF)

    refused(errno.EINVAL, h.pread, 1, size)
    refused(errno.ENOSPC, h.pwrite, b"x", size)
    refused(errno.ENOSPC, h.zero, 2, size - 1)
    refused(errno.EINVAL, h.trim, 2, size - 1)
    refused(errno.EINVAL, h.cache, 2, size - 1)
    refused(errno.EINVAL, h.trim, 1, 0, nbd.CMD_FLAG_NO_HOLE)
    refused(errno.EINVAL, h.zero, 0, 0)
    h.zero(size, 0)
    h.shutdown()

    h = connect("ro", structured)
    assert h.is_read_only() and not h.can_trim() and not h.can_zero()
    assert h.pread(10, 0) == bytes(10)
    refused(errno.EPERM, h.pwrite, b"x", 0)
    refused(errno.EPERM, h.trim, 1, 0)
    refused(errno.EPERM, h.zero, 1, 0)
    h.flush()
    h.shutdown()


def in_flight():
    """Hundreds of requests at once, each answered exactly once."""
    h = connect("disk")
    blocks = {i: random.randbytes(4096) for i in range(300)}
    for i, block in blocks.items():
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)), i * 4096)
    while h.aio_in_flight() > 0:
        h.poll(-1)
    buffers = {i: nbd.Buffer(4096) for i in blocks}
    for i, buffer in buffers.items():
        h.aio_pread(buffer, i * 4096)
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert all(bytes(buffers[i].to_bytearray()) == blocks[i] for i in blocks)
    h.zero(MIB * 2, 0)
    h.shutdown()


def options():
    """The options one by one, LIST, INFO, a way back, ABORT, and EXPORT_NAME by a client without fixed newstyle."""
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_full_info(True)
    h.connect_unix(SOCKET)
    names = []
    h.opt_list(lambda name, description: names.append((name, description)))
    assert [n for n, _ in names] == ["disk", "ro"] and all(d for _, d in names)
    h.set_export_name("nope")
    refused(errno.ENOENT, h.opt_info)
    refused(errno.ENOENT, h.opt_go)
    h.set_export_name("")
    h.opt_info()
    assert h.get_canonical_export_name() == "disk" and "memory" in h.get_export_description()
    contexts = []
    h.opt_list_meta_context(contexts.append)
    assert contexts == ["base:allocation"]
    h.opt_abort()

    for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
        h = nbd.NBD()
        h.set_handshake_flags(flags)
        h.set_export_name("disk")
        h.connect_unix(SOCKET)
        assert h.get_protocol() == "newstyle"
        assert h.pread(1, 0) == bytes(1)
        h.shutdown()


walk(True)
walk(False)
in_flight()
options()
print("walked")
