"""`python -m flowctl` is `flowctl`."""

from __future__ import annotations

import sys

from flowctl.main import main

if __name__ == "__main__":
    sys.exit(main())
