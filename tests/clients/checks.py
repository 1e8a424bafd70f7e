"""Counted checks, and the chance that a failed run repeats with AFTERIMAGE_SEED."""

import os
import random

done = 0
seed = int(os.environ.get("AFTERIMAGE_SEED", random.SystemRandom().getrandbits(32)))
chance = random.Random(seed)


def check(good, *what):
    global done
    done += 1
    if not good:
        raise AssertionError(" ".join(str(w) for w in what))
