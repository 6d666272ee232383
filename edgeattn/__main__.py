"""Lets ``python -m edgeattn`` do what the command ``edgeattn`` does."""

from __future__ import annotations

from edgeattn.cli import main

if __name__ == "__main__":
    main()
