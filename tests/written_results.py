"""A command for tests of tools/verify: python -m tests.written_results FROM TO copies a file of results."""

import sys
from pathlib import Path

if __name__ == "__main__":
    to = Path(sys.argv[2])
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(Path(sys.argv[1]).read_bytes())
