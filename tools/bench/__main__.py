"""`python -m tools.bench`."""

import sys

from tools import bench

sys.exit(bench.main())
