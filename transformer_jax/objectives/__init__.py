"""Pre-training objectives in NumPy, one example at a time; all random numbers are a function of (seed, index)."""

import numpy as np


def generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random generator of one example: the same in any order, on any host, and each time it is made.

    Philox is counter-based (Salmon et al. 2011). The key is (seed, stream) and the counter starts at index * 2^64, so
    that no two examples share random numbers.

    Args:
      seed: the seed of the run, in [0, 2^64).
      index: the index of the example, in [0, 2^64).
      stream: separates purposes, such as training and validation, in [0, 2^64).
    """
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64)))
