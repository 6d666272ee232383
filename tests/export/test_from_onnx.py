"""Anyone's ONNX: what can be used is used, everything else is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeattn.errors import ModelError
from edgeattn.export.from_onnx import load_float_onnx, read_fixed_onnx, read_onnx
from edgeattn.onnx_graph import Graph


def _classifier(
    *,
    shape: tuple[object, ...] = (1, 3, 8, 8),
    inputs: int = 1,
    dtype: int = TensorProto.FLOAT,
    quantized: bool = False,
    domain: str = "",
    opset: int = 17,
) -> ModelProto:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    dense = generator.standard_normal((5, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x0", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"], domain=domain),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "d"], ["y"], transB=1),
    ]
    constants = {"w": weight, "d": dense}
    if quantized:
        constants |= {"s": np.float32(0.1), "z": np.uint8(0)}
        nodes[1:1] = [
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["c2"]),
        ]
        nodes[3].input[0] = "c2"
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(f"x{i}", dtype, shape) for i in range(inputs)],
        [helper.make_tensor_value_info("y", dtype, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = 8
    return model


def _save(model: ModelProto, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_plain_classifier_is_taken_and_computes_the_same(tmp_path: Path) -> None:
    model = _classifier()
    taken = load_float_onnx(_save(model, tmp_path))
    image = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    outputs = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x0": image}
        )[0]
        for m in (model, taken)
    ]
    assert np.allclose(*outputs, atol=1e-5)


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    taken = load_float_onnx(_save(_classifier(opset=11), tmp_path))
    assert taken.opset_import[0].version >= 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 2}, "2 inputs"),
        ({"shape": ("batch", 3, "height", 8)}, "dynamic shape"),
        ({"shape": (2, 3, 8, 8)}, "batch 1"),
        ({"quantized": True}, "already quantized"),
        ({"domain": "com.example"}, "com.example"),
    ],
)
def test_what_cannot_be_quantized_is_refused_with_the_reason(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_float_onnx(_save(_classifier(**changes), tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [("batch", 3, 8, 8), (None, 3, 8, 8)])
def test_an_open_batch_alone_is_taken_for_one(shape: tuple[object, ...], tmp_path: Path) -> None:
    taken = load_float_onnx(_save(_classifier(shape=shape), tmp_path))
    assert Graph(taken).io_specs()[0][0].shape == (1, 3, 8, 8)


def test_open_sizes_are_what_is_asked_for(tmp_path: Path) -> None:
    path = _save(_classifier(shape=("batch", 3, "?", "?")), tmp_path)
    taken = load_float_onnx(path, (1, 3, 12, 20))
    assert Graph(taken).io_specs()[0][0].shape == (1, 3, 12, 20)
    assert Graph(taken).shapes()["c"] == (1, 4, 10, 18)


@pytest.mark.parametrize("asked", [(1, 1, 12, 20), (1, 3, 12), (2, 3, 12, 20)])
def test_sizes_that_do_not_fit_the_file_are_refused(asked: tuple[int, ...], tmp_path: Path) -> None:
    path = _save(_classifier(shape=(1, 3, "?", "?")), tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        load_float_onnx(path, asked)


def test_a_file_with_open_sizes_is_read_with_fixed_ones(tmp_path: Path) -> None:
    """As paddle2onnx writes the end of a network: the size of the batch is asked for."""
    model = _classifier(shape=("batch", 3, "?", "?"))
    pool, flatten = model.graph.node[2], model.graph.node[3]
    zero, one, rest = (
        numpy_helper.from_array(np.array(v), n) for v, n in (([0], "zero"), ([1], "one"), ([4], "four"))
    )
    model.graph.initializer.extend([zero, one, rest])
    del model.graph.node[3]
    nodes = [
        helper.make_node("Shape", [pool.output[0]], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "four"], ["flat_shape"], axis=0),
        helper.make_node("Reshape", [pool.output[0], "flat_shape"], list(flatten.output)),
    ]
    for index, node in enumerate(nodes):
        model.graph.node.insert(3 + index, node)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    fixed = Graph(read_fixed_onnx(_save(model, tmp_path), (1, 3, 10, 12)))
    assert [spec.shape for specs in fixed.io_specs() for spec in specs] == [(1, 3, 10, 12), (1, 5)]
    plain = _save(_classifier(), tmp_path / "fixed")
    assert read_fixed_onnx(plain) == read_onnx(plain)


def test_outputs_may_be_maps_and_several(tmp_path: Path) -> None:
    model = _classifier()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 4, 6, 6]))
    assert [item.name for item in load_float_onnx(_save(model, tmp_path)).graph.output] == ["y", "r"]


def test_an_output_without_a_batch_is_refused(tmp_path: Path) -> None:
    model = _classifier()
    model.graph.node.append(helper.make_node("Reshape", ["y", "five"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([5]), "five"))
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [5]))
    with pytest.raises(ModelError, match="batch 1 in front"):
        load_float_onnx(_save(model, tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", b"\x89PNG\r\n" * 20])
def test_a_file_that_is_no_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not an ONNX model|not a valid ONNX model"):
        read_onnx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        read_onnx(tmp_path / "nothing.onnx")


def _external(folder: Path, name: str = "model.onnx.data") -> Path:
    """Save a model as torch's exporter does by default: weights in a file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(_classifier(), str(path), save_as_external_data=True, location=name, size_threshold=0)
    return path


def test_weights_beside_the_model_are_taken_in(tmp_path: Path) -> None:
    path = _external(tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    alone = load_float_onnx(_save(_classifier(), tmp_path / "alone"))
    assert load_float_onnx(path) == alone


def test_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1 << 16))
    path = _external(tmp_path / "inner")
    data = tmp_path / "inner" / "model.onnx.data"
    for location in ("../secret.bin", str(secret)):
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        elsewhere = path.with_name("elsewhere.onnx")
        elsewhere.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match="in another file"):
            read_onnx(elsewhere)
    data.unlink()
    data.symlink_to(secret)
    with pytest.raises(ModelError, match="in another file"):
        read_onnx(path)


def test_weights_that_are_missing_or_cut_are_named(tmp_path: Path) -> None:
    path = _external(tmp_path)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"keeps the weight .* cannot be read"):
        read_onnx(path)
    data.unlink()
    with pytest.raises(ModelError, match="external_data=False"):
        read_onnx(path)


def test_weights_that_claim_too_much_are_refused_unread(tmp_path: Path) -> None:
    path = _external(tmp_path)
    with (tmp_path / "model.onnx.data").open("r+b") as stream:
        stream.truncate((1 << 30) + (1 << 20))  # sparse
    model = onnx.load(str(path), load_external_data=False)
    for entry in [entry for tensor in model.graph.initializer for entry in tensor.external_data]:
        if entry.key == "length":
            entry.value = str((1 << 30) + 1)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="1 GiB"):
        read_onnx(path)


def test_an_output_whose_size_follows_is_settled(tmp_path: Path) -> None:
    model = _classifier()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    graph = Graph(load_float_onnx(_save(model, tmp_path)))
    assert graph.io_specs()[1][0].shape[0] == 1


def test_constant_subgraphs_are_folded(tmp_path: Path) -> None:
    model = _classifier()
    half = numpy_helper.from_array(np.float32(0.5), "half")
    model.graph.initializer.append(half)
    model.graph.node.insert(0, helper.make_node("Mul", ["w", "half"], ["w2"]))
    model.graph.node[1].input[1] = "w2"
    taken = load_float_onnx(_save(model, tmp_path))
    assert [node.op_type for node in taken.graph.node].count("Mul") == 0
