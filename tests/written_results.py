"""A command for tests of tools/verify: python -m tests.written_results FROM TO [--seed N] copies a file of results.

With a seed FROM is a folder that holds N.json.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    source, to, *seed = sys.argv[1:]
    Path(to).write_bytes((Path(source) / f"{seed[1]}.json" if seed else Path(source)).read_bytes())
