"""`python -m starflow_jax` is `starflow`."""

import sys

from starflow_jax.cli.dispatch import main

if __name__ == "__main__":
    sys.exit(main())
