"""`python -m transformer_jax COMMAND`: see `cli.main`."""

import sys

from transformer_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
