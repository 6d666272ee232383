"""`edgeattn parity`: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeattn.cli_errors import handle_errors
from edgeattn.cli_options import (
    BgrOption,
    FitOption,
    InputShapeOption,
    JsonOption,
    NormalizationOption,
    examples,
    parse_shape,
    split_names,
)
from edgeattn.cli_output import open_console, print_json, print_line, print_table

__all__ = ["PARITY_EXAMPLES", "parity", "print_parity"]

PARITY_EXAMPLES = examples(
    "edgeattn parity runs/ptq --targets reference,ort-cpu,openvino-cpu",
    "edgeattn parity runs/ptq --targets ort-cpu,openvino-cpu --profiles u8,s8 --data photos/ --json",
    "edgeattn parity model.onnx --targets ort-cpu,openvino-cpu --data photos/ --layer-images 0",
    "edgeattn parity runs/ptq --targets reference,reference@vpmaddubsw   # x86 without VNNI",
    "edgeattn parity runs/ptq --targets ort-cpu --inputs device_inputs.npy   # another preprocessing",
)

_NOTHING = "-"
_SHOWN = 5


@handle_errors
def parity(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run's folder, or an ONNX file, float or quantized.")
    ],
    names: Annotated[
        list[str], typer.Option("--targets", "-t", metavar="NAMES", help="Separated by commas, or repeated.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="D",
            help="A folder of images (labels.csv or class folders give labels) or an .npy file of NCHW inputs. "
            "Default: what the run was measured on.",
        ),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="u8,s8: each target in each that it takes. Default: its own."),
    ] = None,
    layer_images: Annotated[
        int, typer.Option(min=0, max=256, help="Images that layers are compared on; 0 leaves layers out.")
    ] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many images.")] = None,
    with_seen: Annotated[
        bool,
        typer.Option(
            "--with-seen",
            help="Take images as well that the run learned from: engines are compared on more, and top-1 says less.",
        ),
    ] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="NPY", help="What a device made of the same images, in order: compared bit by bit."
        ),
    ] = None,
    normalization: NormalizationOption = None,
    fit: FitOption = None,
    bgr: BgrOption = None,
    input_shape: InputShapeOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 4 if a bound is missed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare targets on the same inputs, whole and layer by layer.

    Whole: agreement with the float network and with each other, top-1, SQNR. Layer by layer: each layer of
    each target against exact integer arithmetic, both given the same integers, and why it differs.
    """
    from edgeattn.data.model_input import ImageOptions
    from edgeattn.pipeline import parity_model
    from edgeattn.progress import make_progress

    with make_progress() as progress:
        result = parity_model(
            model,
            split_names(names),
            data,
            progress,
            profiles=split_names(profiles),
            layer_images=layer_images,
            limit=limit,
            inputs=inputs,
            with_seen=with_seen,
            input_shape=parse_shape(input_shape),
            image_options=ImageOptions(normalization, fit, bgr),
        )
    (print_json if as_json else print_parity)(result)
    failed = not result.get("verdict", {}).get("passed", True) or result.get("inputs", {}).get(
        "is_error", False
    )
    if strict and failed:
        raise typer.Exit(4)


def print_parity(result: Mapping[str, Any]) -> None:
    """Print agreement by target and by pair, the layers that differ, and the verdict."""
    console = open_console()
    float_top1 = result.get("fp32", {}).get("top1")
    if result.get("n") is not None:
        about = f"{result['n']} images"
        if result.get("data", {}).get("left_out"):
            about += (
                f" ({result['data']['left_out']} that the run learned from or was calibrated with left out)"
            )
        if result.get("data", {}).get("seen"):
            about += f" ({result['data']['seen']} that the run learned from or was calibrated with)"
        if result["data"].get("prepared"):
            about += f" ({result['data']['prepared']})"
        print_line(console, about + ("" if float_top1 is None else f", fp32 top-1 {_percent(float_top1)}"))
    header = ("target", "profile", "status", "agreement", "top-1", "95 % interval", "McNemar p", "SQNR", "KL")
    rows, remarks = [], []
    for name, entry in result.get("targets", {}).items():
        rows.append(
            (
                name,
                str(entry.get("profile", _NOTHING)),
                str(entry.get("status", "ok")),
                _percent(entry.get("agreement")),
                _percent(entry.get("top1")),
                _span(entry.get("top1_interval")),
                _figure(entry.get("mcnemar_p"), ".3g"),
                "identical" if entry.get("identical") else _figure(entry.get("sqnr_db"), ".1f", " dB"),
                _figure(entry.get("kl"), ".2e"),
            )
        )
        remarks += [f"{name}: {entry[key]}" for key in ("reason", "error") if entry.get(key)]
    print_table(console, header, rows, left=3)
    for remark in remarks:
        print_line(console, remark)
    pairs = [
        (
            pair.replace("/", " / "),
            _percent(entry["agreement"]),
            _span(entry.get("agreement_interval")),
            "identical" if entry.get("identical") else _figure(entry.get("sqnr_db"), ".1f", " dB"),
            _figure(entry.get("mcnemar_p"), ".3g"),
        )
        for pair, entry in result.get("between", {}).items()
    ]
    if pairs:
        print_table(console, ("pair", "agreement", "95 % interval", "SQNR", "McNemar p"), pairs, left=1)
    _print_layers(console, result)
    if "inputs" in result:
        print_line(console, f"preprocessing: {result['inputs']['cause']}: {result['inputs']['evidence']}")
    proof = result.get("pair_saturation")
    if proof is not None:
        print_line(
            console,
            f"without VNNI, {proof['can_saturate']} of {proof['layers_judged']} layers can saturate by their weights, "
            f"{proof['on_data']} with the activations of {proof['images']} of these images",
        )
    for reason in result.get("verdict", {}).get("reasons", ()):
        print_line(console, f"{'ok  ' if reason['passed'] else 'MISS'} {reason['about']}: {reason['text']}")


def _print_layers(console: Any, result: Mapping[str, Any]) -> None:
    for name, entry in result.get("targets", {}).items():
        layers = entry.get("layers")
        if not layers:
            continue
        print_line(
            console,
            f"{name}: {len(layers['layers'])} layers given the same inputs, {layers['images']} images: "
            f"{layers['different_share']:.2e} of all values differ from the reference",
        )
        if layers.get("same_outputs") is False:
            print_line(
                console,
                f"{name}: the pieces, run on their own integers, do not give the whole engine's outputs: what is cut "
                "there is computed otherwise in the whole, which these figures do not show",
            )
        errors = [layer for layer in layers["layers"] if layer["finding"]["is_error"]]
        shown = (
            errors or sorted(layers["layers"], key=lambda layer: -float(layer["different_share"]))[:_SHOWN]
        )
        rows = [
            (
                layer["module"] or layer["name"],
                layer["finding"]["cause"],
                f"{layer['histogram'][0]:.4%}",
                f"{layer['histogram'][1]:.4%}",
                f"{layer['over_one_share']:.4%}",
                f"{layer['max_lsb']:.0f}",
                f"{layer['bias_lsb']:+.1e}",
                "equal" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f} dB",
            )
            for layer in shown
        ]
        header = ("layer", "why", "equal", "1 LSB", "more", "most", "bias", "SQNR")
        print_table(console, header, rows, left=2)


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.2f} %"


def _span(interval: Any) -> str:
    return _NOTHING if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _figure(value: float | None, spec: str, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:{spec}}{unit}"
