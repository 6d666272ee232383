"""Print the folder of OpenVINO's CMake files, for -DOpenVINO_DIR=...; `pip install openvino` brings it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Print the folder; 1 if there is none."""
    # Not imported: that takes seconds, and fails for a wheel of another processor.
    spec = importlib.util.find_spec("openvino")
    folder = Path(spec.origin).parent / "cmake" if spec is not None and spec.origin else None
    if folder is None or not (folder / "OpenVINOConfig.cmake").is_file():
        print("OpenVINO's package is not installed here: pip install openvino", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
