"""What a kit's benchmark does with its figures: names the machine, prints them, and writes them where asked."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edgeattn.artifact import write_json
from edgeattn.measure.environment import describe_environment

__all__ = ["figures_parser", "publish"]


def figures_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def publish(figures: dict[str, Any], path: Path | None) -> None:
    """Print figures as JSON with the machine that gave them; write them to `path` if there is one."""
    figures = {**figures, "environment": describe_environment()}
    if path is not None:
        write_json(path, figures)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
