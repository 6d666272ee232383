"""A run's folder: finished stages are remembered, checked, and not repeated."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn.artifact import read_json, sha256_of_file, write_json
from edgeattn.errors import ArtifactError
from edgeattn.progress import Progress
from edgeattn.report import StageResult

__all__ = ["Workspace"]

STATE_FILE = "stages.json"


class Workspace:
    """Stages of one run, each with a key over everything that it depends on.

    A stage whose key is unchanged and whose files are still what was written is skipped. A file that was
    changed afterwards is an error, not a reason to rebuild silently: somebody did that on purpose, or the
    disk is failing.

    Args:
        folder: Made if it is not there.
        progress: Hears which stages are taken from an earlier run.
        cache: Folder for decoded images, which several runs may share; None is one of the run's own.
    """

    def __init__(self, folder: Path, progress: Progress, cache: Path | None = None) -> None:
        self.folder = folder
        self.cache = cache if cache is not None else folder / "cache"
        self.stages: list[StageResult] = []
        self._progress = progress
        self._path = folder / STATE_FILE
        self._state: dict[str, Any] = {}
        if self._path.exists():
            state = read_json(self._path)
            if not isinstance(state, dict):
                raise ArtifactError(f"{self._path} is not a record of stages. Delete it and run again.")
            self._state = state

    def run(
        self, name: str, key: Mapping[str, Any], files: Sequence[str], make: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Run a stage, or take its result from an earlier run.

        Args:
            name: The stage's name.
            key: Everything that the result depends on, JSON-ready.
            files: Names of the files that the stage writes into the folder.
            make: Does the work and returns a JSON-ready result.

        Raises:
            ArtifactError: If a file of a finished stage was changed or removed.
        """
        fingerprint = _hash(key)
        known = self._state.get(name)
        if isinstance(known, dict) and known.get("key") == fingerprint:
            self._verify(name, known)
            self._progress.note(f"{name}: taken from an earlier run")
            self.stages.append(StageResult(name=name, seconds=float(known["seconds"]), resumed=True))
            return dict(known["result"])
        started = time.monotonic()
        result = dict(make())
        seconds = time.monotonic() - started
        self._state[name] = {
            "key": fingerprint,
            "seconds": seconds,
            "result": result,
            "files": {file: sha256_of_file(self.folder / file) for file in files},
        }
        write_json(self._path, self._state)
        self.stages.append(StageResult(name=name, seconds=seconds))
        return result

    def fingerprint_of(self, name: str) -> str:
        """Return what identifies a finished stage's files, for the keys of later stages."""
        return _hash(self._state[name]["files"])

    def _verify(self, name: str, known: Mapping[str, Any]) -> None:
        for file, expected in known["files"].items():
            path = self.folder / file
            if not path.is_file():
                raise ArtifactError(
                    f"{path} is missing, though the stage {name!r} finished. Delete {self._path} to do "
                    "everything again."
                )
            if sha256_of_file(path) != expected:
                raise ArtifactError(
                    f"{path} was changed after the stage {name!r} wrote it. Restore it, or delete it and "
                    f"{self._path} to do everything again."
                )


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
