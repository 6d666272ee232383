"""Import optional packages on demand, saying how to install a missing one."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from edgeattn.errors import MissingExtraError

__all__ = ["EXTRA_OF_PACKAGE", "installed_version", "is_installed", "require"]

# Import name -> extra of this project that installs it.
EXTRA_OF_PACKAGE: dict[str, str] = {
    "torch": "torch",
    "nncf": "torch",
    "onnxruntime": "ort",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "sklearn": "quickstart",
    "matplotlib": "report",
}


def require(package: str, *, purpose: str) -> ModuleType:
    """Import `package`, or explain which extra brings it.

    Args:
        package: Import name, such as ``"onnxruntime"``.
        purpose: What needs it, for the message, such as ``"the target ort-cpu"``.

    Raises:
        MissingExtraError: If the package is not installed or cannot be loaded.
    """
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        extra = EXTRA_OF_PACKAGE.get(package.split(".")[0])
        fix = f"pip install 'edgeattn[{extra}]'" if extra else f"pip install {package}"
        raise MissingExtraError(
            f"{purpose} needs the package {package!r}, which cannot be imported ({exc}). "
            f"Install it with: {fix}"
        ) from exc


def is_installed(package: str) -> bool:
    """Return whether `package` can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
