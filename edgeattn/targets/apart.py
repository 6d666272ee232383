"""Build engines in a process of their own, so that a runtime that crashes over a graph ends that process only.

OpenVINO's CPU plugin has ended the process in ``compile_model`` for graphs that it should have refused. What was trained
and quantized until then is worth more than the second that starting another Python takes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from edgeattn.artifact import OnnxArtifact
from edgeattn.errors import EdgeAttnError, ModelError
from edgeattn.targets.base import Engine, Target
from edgeattn.targets.engine_files import (
    engine_from_json,
    engine_manifest_path,
    engine_to_json,
    verify_engine,
)

__all__ = ["build_apart", "main"]

_MODULE = "edgeattn.targets.apart"
_SAID = 400


def build_apart(target: Target, artifact: OnnxArtifact, workdir: Path) -> Engine:
    """Build a registered target's engine in a process of its own.

    Args:
        target: With its default options.
        artifact: Lowered model.
        workdir: Folder of the engine.

    Raises:
        ModelError: If the target refuses the model, or crashes over it.
        ArtifactError: If what was built is not what its manifest says.
    """
    request = {
        "target": target.name,
        "artifact": artifact.to_json(),
        "folder": str(artifact.path.parent.absolute()),
        "workdir": str(workdir.absolute()),
    }
    done = subprocess.run(
        [sys.executable, "-m", _MODULE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.rpartition("\n")[2])
    except ValueError:
        answer = {}
    if done.returncode == 0 and "engine" in answer:
        engine = engine_from_json(answer["engine"], engine_manifest_path(workdir / "engine"))
        verify_engine(engine)
        return engine
    if "error" in answer:
        raise ModelError(str(answer["error"]))
    code = done.returncode
    ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = " ".join(done.stderr.split())[-_SAID:]
    raise ModelError(
        f"{target.name} {target.probe().version} crashed while it built this graph ({ending})"
        f"{f': {said}' if said else ''}. The graph is {artifact.path}; another version of the runtime may take it. "
        "Other targets are built all the same."
    )


def main() -> None:
    """Answer the request on standard input, in the last line of standard output."""
    request = json.load(sys.stdin)
    from edgeattn.targets import get_target

    try:
        artifact = OnnxArtifact.from_json(request["artifact"], Path(request["folder"]))
        engine = get_target(request["target"]).build(artifact, Path(request["workdir"]))
        answer: dict[str, object] = {"engine": engine_to_json(engine)}
    except EdgeAttnError as exc:
        answer = {"error": str(exc)}
    sys.stdout.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
