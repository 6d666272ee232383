"""Networks that are no classifiers: maps, several outputs, sizes left open. From the file to engines that agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from PIL import Image
from quant_networks import SIZE, Builder, pictures

from edgeattn.data.model_input import ImageOptions
from edgeattn.errors import ArtifactError
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline import parity_model, quantize_onnx
from edgeattn.pipeline_quantize import sensitivity_images
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.output_weights import output_weights, weigh_outputs
from edgeattn.quant.plan import ActivationRange, QuantPlan
from edgeattn.quant.torch_graph import TorchGraph
from edgeattn.report import Report

QUICK = PtqConfig(nncf=False, tuning_steps=2, range_estimator="minmax")


def detector(*, open_sizes: bool = False) -> ModelProto:
    """Hard swishes, an SE gate, boxes in pixels and scores in [0, 1] at two scales: as PicoDet on PP-LCNet has them."""
    b = Builder(0)
    x = b.node("HardSwish", [b.conv("input", "stem", 3, 8, kernel=3)], "stem_act")
    x = b.node("HardSwish", [b.conv(x, "depthwise", 8, 8, kernel=3, group=8)], "depthwise_act")
    gate = b.node("GlobalAveragePool", [x], "pool")
    gate = b.node("Relu", [b.conv(gate, "squeeze", 8, 4)], "squeeze_act")
    gate = b.node("HardSigmoid", [b.conv(gate, "excite", 4, 8)], "gate", alpha=1 / 6, beta=0.5)
    x = b.node("Mul", [x, gate], "gated")
    x = b.node("HardSwish", [b.conv(x, "last", 8, 8)], "last_act")
    boxes = b.node("Mul", [b.conv(x, "boxes.conv", 8, 4), b.constant("hundred", 100.0)], "boxes")
    scores = b.node("Sigmoid", [b.conv(x, "scores.conv", 8, 2)], "scores")
    model = b.model(scores, (1, 2, SIZE, SIZE))
    model.graph.output.append(helper.make_tensor_value_info(boxes, TensorProto.FLOAT, (1, 4, SIZE, SIZE)))
    if open_sizes:
        for item in (*model.graph.input, *model.graph.output):
            for index in (0, 2, 3):
                item.type.tensor_type.shape.dim[index].dim_param = "?"
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("detector")
    onnx.save(detector(open_sizes=True), str(folder / "detector.onnx"))
    np.save(folder / "images.npy", np.concatenate(pictures(40)))
    report = quantize_onnx(
        folder / "detector.onnx",
        folder / "images.npy",
        folder / "out",
        targets=["reference", "ort-cpu", "openvino-cpu"],
        config=QUICK,
        input_shape=(1, 3, SIZE, SIZE),
    )
    return folder, report


def test_every_output_is_near_the_float_network(run: tuple[Path, Report]) -> None:
    _, report = run
    assert report.recipe["input_shape"] == [1, 3, SIZE, SIZE]
    assert {target.status for target in report.targets.values()} == {"ok"}
    for target in report.targets.values():
        assert set(target.outputs_sqnr_db) == {"boxes", "scores"}
        assert all(ratio is not None and ratio > 20 for ratio in target.outputs_sqnr_db.values())
        assert target.agreement is None, "no number of a box is to be the largest"
        assert target.top1 is None


def test_the_ladder_measures_no_agreement_either(run: tuple[Path, Report]) -> None:
    _, report = run
    ladder = report.quant["ladder"]
    assert isinstance(ladder, list)
    assert {step["agreement_u8"] for step in ladder if isinstance(step, dict)} == {None}


def test_engines_agree_and_parity_judges_their_layers(run: tuple[Path, Report]) -> None:
    folder, _ = run
    found = parity_model(
        folder / "out",
        ["reference", "ort-cpu", "openvino-cpu"],
        folder / "images.npy",
        limit=8,
        layer_images=2,
    )
    assert found["verdict"]["passed"], found["verdict"]["reasons"]
    assert {reason["metric"] for reason in found["verdict"]["reasons"]} == {"sqnr_db", "over_one_share"}
    assert found["between"]["reference/ort-cpu"]["sqnr_db"] > 25


def test_another_target_costs_no_second_calibration(tmp_path: Path) -> None:
    onnx.save(detector(), str(tmp_path / "detector.onnx"))
    images = np.concatenate(pictures(33))
    np.save(tmp_path / "images.npy", images)

    def quantized(target: str, **changes: object) -> Report:
        config = QUICK.model_copy(update=changes)
        source, data = tmp_path / "detector.onnx", tmp_path / "images.npy"
        return quantize_onnx(source, data, tmp_path / "out", targets=[target], config=config)

    first = quantized("reference")
    plan = (tmp_path / "out" / "plan.json").read_bytes()
    second = quantized("ort-cpu")
    assert [stage.resumed for report in (first, second) for stage in report.stages] == [False, True]
    assert (tmp_path / "out" / "plan.json").read_bytes() == plan
    assert second.quant["ladder"] == first.quant["ladder"]
    assert list(second.targets) == ["ort-cpu"]
    assert not quantized("reference", tuning_steps=0).stages[0].resumed
    np.save(tmp_path / "images.npy", images[::-1])
    assert not quantized("reference", tuning_steps=0).stages[0].resumed
    (tmp_path / "out" / "plan.json").write_bytes(plan)
    with pytest.raises(ArtifactError, match="was changed after"):
        quantized("reference", tuning_steps=0)


def test_parity_makes_inputs_of_photographs_as_quantize_did(tmp_path: Path) -> None:
    onnx.save(detector(open_sizes=True), str(tmp_path / "detector.onnx"))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index in range(33):
        pixels = np.random.default_rng(index).integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{index:02}.png")
    report = quantize_onnx(
        tmp_path / "detector.onnx",
        photographs,
        tmp_path / "out",
        targets=["ort-cpu"],
        config=QUICK.model_copy(update={"tuning_steps": 0}),
        input_shape=(1, 3, 16, 24),
        image_options=ImageOptions("unit", "letterbox", bgr=True),
    )
    prepared = report.recipe["images"]
    assert isinstance(prepared, dict)
    assert {key: prepared[key] for key in ("height", "width", "channels", "fit")} == {
        "height": 16,
        "width": 24,
        "channels": "bgr",
        "fit": "letterbox",
    }
    for model in (tmp_path / "out", tmp_path / "out" / "model.u8.onnx"):
        found = parity_model(model, ["ort-cpu"], photographs, layer_images=0)
        assert found["data"]["preprocess"] == prepared
        assert (found["n"], found["data"]["left_out"]) == (16, 17), "every other one calibrated"
    assert parity_model(model, ["ort-cpu"], photographs, layer_images=0, with_seen=True)["n"] == 33
    changed = parity_model(
        tmp_path / "out", ["ort-cpu"], photographs, layer_images=0, image_options=ImageOptions(fit="stretch")
    )
    assert changed["data"]["preprocess"] == {**prepared, "fit": "stretch"}
    manifest = tmp_path / "some.yaml"
    manifest.write_text("name: some\ndata: {kind: digits}\ncount: 16\n")
    assert parity_model(tmp_path / "out", ["ort-cpu"], manifest, layer_images=0)["n"] == 16


def test_float_engines_are_judged_by_their_outputs(run: tuple[Path, Report]) -> None:
    folder, _ = run
    found = parity_model(
        folder / "detector.onnx",
        ["reference", "ort-cpu"],
        folder / "images.npy",
        limit=4,
        input_shape=(1, 3, SIZE, SIZE),
    )
    (reason,) = found["verdict"]["reasons"]
    assert (reason["metric"], reason["bound"], reason["passed"]) == ("sqnr_db", 30.0, True)


@pytest.mark.parametrize(("images", "expected"), [((1, 3, 64, 64), 8), ((1, 3, 12800, 12800), 1)])
def test_layers_of_large_networks_are_measured_on_fewer_images(
    images: tuple[int, ...], expected: int
) -> None:
    model = detector(open_sizes=True)
    for item in (*model.graph.input, *model.graph.output):
        for index, size in ((0, 1), (2, images[2]), (3, images[3])):
            item.type.tensor_type.shape.dim[index].dim_value = size
    plan = QuantPlan(method="ptq", activations={"stem": ActivationRange(low=-1, high=1, limit=1)}, weights={})
    assert sensitivity_images(model, plan) == expected


def test_outputs_weigh_alike_whatever_their_unit() -> None:
    model, images = detector(), pictures(16)
    weights = weigh_outputs(model, images)
    assert 20 < weights["scores"] / weights["boxes"] < 500
    graph = Graph(model)
    assert output_weights(graph) == weights
    network = TorchGraph(graph)
    assert not network.gives_classes
    torch = pytest.importorskip("torch")
    answer = torch.cat([network(torch.from_numpy(image)) for image in images])
    power = answer.square().sum(0) / len(images)
    count = 2 * SIZE * SIZE
    assert float(power[:count].sum()) == pytest.approx(1, rel=1e-3)
    assert float(power[count:].sum()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("noted", ["", "[1]", '{"scores": -1, "boxes": "x"}', '{"scores": 1e999}'])
def test_weights_that_a_file_only_claims_are_checked(noted: str) -> None:
    model = detector()
    model.metadata_props.add(key="edgeattn.output_weights", value=noted)
    assert output_weights(Graph(model)) == {"scores": 1.0, "boxes": 1.0}
