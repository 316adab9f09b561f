"""How the scripts end: bad input is one line and a non-zero exit, a bug is a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from infu_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`."""
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
