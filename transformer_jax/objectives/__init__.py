"""Pre-training objectives: NumPy, one example at a time, every draw a function of (seed, index)."""

import numpy as np


def generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of example `index`: the same in any order, on any host, however often it is made.

    Philox is counter-based (Salmon et al. 2011): the key is (seed, stream), the counter starts at index * 2^64, so that
    no two examples share a number. `stream` keeps purposes apart, such as training and validation. All are in [0,
    2^64).
    """
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64)))
