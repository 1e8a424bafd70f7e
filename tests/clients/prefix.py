#!/usr/bin/python3
"""Writes numbered blocks to an export, one after the other, until it is killed or the export is.

    prefix.py URI FIRST BLOCKS

Write N, from FIRST on, fills block N * 7919 % BLOCKS with the number N. Now and then, after a flush was answered, prints the number of
the last write before it: that one and all before it are durable.
"""

import sys

import nbd
from checks import chance

BLOCK = 4096
uri, number, blocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
handle = nbd.NBD()
handle.connect_uri(uri)
try:
    while True:
        for _ in range(chance.choice([1, 3, 20, 150])):
            at = number * 7919 % blocks * BLOCK
            handle.pwrite(number.to_bytes(8, "little") * (BLOCK // 8), at)
            number += 1
        handle.flush()
        print(number - 1, flush=True)
except nbd.Error:
    pass
