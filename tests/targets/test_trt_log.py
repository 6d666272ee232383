"""Reading TensorRT's layer list, from lines as the real builders write them."""

from __future__ import annotations

import pytest

from edgeattn.targets._trt_log import describe_layers, dtype_name, parse_layers

# TensorRT for RTX 1.7, shortened.
RTX = """Layers:
Name: __myl_MulRounCast_myl0_0, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [1,3,16,16], Strides: \
[768,256,16,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: \
[ { Name: c, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear \
format }], Outputs: [ { Name: a, Dimensions: [1,4,16,16], Strides: [1024,1,64,4], StrideOrder: [3,0,2,1], \
Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: x_Q]
Name: conv1_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,16,16], Strides: \
[1024,1,64,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: b, Dimensions: \
[1], Strides: [1], StrideOrder: [0], Datatype: Half, Format: (Linear) }], Constants: [], Outputs: [ { Name: y, \
Dimensions: [1,16,16,16], Strides: [4096,1,256,16], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) }], \
TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: conv1]\x1f[ONNX Layer: /m/x_DQ]
Name: __myl_TranMove_myl0_2, LayerType: kgen, Inputs: [ { Name: y, Dimensions: [1], Strides: [1], StrideOrder: [0], \
Datatype: Float, Format: (Linear) }], Constants: [], Outputs: [ { Name: z, Dimensions: [1], Strides: [1], \
StrideOrder: [0], Datatype: Float, Format: (Linear) }], TacticName: t, StreamId: 0, Metadata:

I/O Tensors:
 Name: input, IOMode: Input, DataType: Float, Dimensions: [1,3,16,16]
"""
# TensorRT 10, after the format of its engine inspector.
FULL = """Layers:
Name: conv1 + relu1, LayerType: CaskConvolution, Inputs: [ { Name: a, Location: Device, Dimensions: [1,64,7,7], \
Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: y, Location: Device, \
Dimensions: [1,64,7,7], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], ParameterType: \
Convolution, Kernel: [3,3], TacticName: sm80_xmma, StreamId: 0, Metadata: [ONNX Layer: conv1]\x1e[ONNX Layer: relu1]
Name: Reformatting CopyNode for Input Tensor 0, LayerType: Reformat, Inputs: [ { Name: y, Location: Device, \
Dimensions: [1,64,7,7], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: \
[ { Name: z, Location: Device, Dimensions: [1,64,7,7], Format/Datatype: Row major linear FP32 }], ParameterType: \
Reformat, StreamId: 0, Metadata:
"""


def test_rtx_layers() -> None:
    layers = parse_layers(["Building", RTX])
    assert [layer.kind for layer in layers] == ["kgen", "correlation", "kgen"]
    assert (layers[0].inputs, layers[0].outputs) == (("float32",), ("int8",))
    assert (layers[1].inputs, layers[1].outputs) == (("int8", "float16"), ("float32",))
    assert layers[1].nodes == ("conv1", "/m/x_DQ")
    details = describe_layers(layers)
    assert details["kernels"] == 3
    assert (details["int8_convolutions"], details["float_convolutions"]) == (1, 0)
    assert details["int8_convolutions_writing_int8"] == 0
    assert details["reformats"] == 1
    assert details["float_kernel_names"] == ["__myl_TranMove_myl0_2"]
    assert details["operators"] == {"correlation": 1, "kgen": 2}


def test_full_tensorrt_layers() -> None:
    layers = parse_layers([FULL])
    details = describe_layers(layers)
    assert layers[0].nodes == ("conv1", "relu1")
    assert details["int8_convolutions"] == details["int8_convolutions_writing_int8"] == 1
    assert layers[1].outputs == ("float32",)
    assert details["reformats"] == 1
    assert details["float_kernels"] == 0


def test_a_log_without_layers_gives_no_counts() -> None:
    assert describe_layers(parse_layers(["Building", "Name: half a line"])) == {}


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ("Float", "float32"),
        ("Half", "float16"),
        ("Row major linear FP16 format", "float16"),
        ("Int8 NC/32HW32", "int8"),
        ("BFloat16", "bfloat16"),
        ("Nothing known", "Nothing known"),
    ],
)
def test_dtype_names(described: str, name: str) -> None:
    assert dtype_name(described) == name
