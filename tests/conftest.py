"""What every test gets: quiet terminals, one thread for each process, and the data folder where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch or a runtime is imported: pytest-xdist runs a process for every core already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "svg")

from hypothesis import settings

# A busy machine must not turn a slow example into a failure, and CI tries the same examples each time.
settings.register_profile("edgeattn", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
settings.load_profile("edgeattn")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder named by EDGEATTN_DATA; tests that need it skip where it is absent."""
    folder = os.environ.get("EDGEATTN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the data sets: set EDGEATTN_DATA (see Recipes in README.md)")
    return Path(folder)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours and a fixed width, wherever the tests run."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("EDGEATTN_DEBUG", raising=False)
