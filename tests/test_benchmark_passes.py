"""The benchmark of lowering passes times the networks that it names, and leaves targets their passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.lower.passes import PASSES

pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As torchvision counts its own networks of these names, and the papers to two digits.
    [
        ("mobilenet_v3_large", 5_483_032),
        ("mobilenet_v3_small", 2_542_856),
        ("efficientnet_b0", 5_288_548),
        ("mobilevit_xxs", 1_272_024),
    ],
)
def test_networks_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    from tests.benchmarks.mobile_networks import NETWORKS

    assert sum(value.numel() for value in NETWORKS[name]().parameters()) == parameters


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("mobilenet_v3_small:ort-cpu:whole-swishes", "ort-cpu has no pass 'whole-swishes'"),
        ("mobilenet_v3_small:ort-cpu:fold-scaling", "'fold-scaling' changes nothing in mobilenet_v3_small"),
    ],
)
def test_a_pass_that_does_nothing_is_not_timed(case: str, problem: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tests.benchmarks.lowering_pass import measure

    before = dict(PASSES)
    with pytest.raises(ValueError, match=problem):
        measure(case, [], 1, tmp_path)
    assert before == PASSES


@pytest.mark.parametrize(
    "case", ["resnet:ort-cpu:block-channels", "efficientnet_b0:ort-cpu", "efficientnet_b0:gpu:x"]
)
def test_what_is_no_case_is_refused_before_anything_runs(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.benchmarks.lowering_pass import main

    with pytest.raises(SystemExit) as ending:
        main(["--cases", case])
    assert ending.value.code == 2
    assert "mobilenet_v3_large" in capsys.readouterr().err
