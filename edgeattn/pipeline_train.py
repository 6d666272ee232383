"""The stages that need torch: data, training, export, quantization, emission."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import edgeattn
from edgeattn.artifact import OnnxArtifact, sha256_of_file
from edgeattn.attention.base import EdgeForm
from edgeattn.data import CalibrationSet, DataSplits, load_calibration, load_dataset, materialize
from edgeattn.data.image_set import ImageSet
from edgeattn.export.artifacts import save_artifact
from edgeattn.export.fake_quant import (
    attach_fake_quant,
    attach_trainable,
    fixed_constants,
    read_back,
    write_constants,
)
from edgeattn.export.float_network import FloatNetwork
from edgeattn.export.float_onnx import FloatExport, export_float
from edgeattn.export.qdq import emit_qdq
from edgeattn.export.reorder import reorder_channels
from edgeattn.export.selfcheck import CHECK_IMAGES, check_export
from edgeattn.lower.preferences import preferred_forms
from edgeattn.measure import wilson_interval
from edgeattn.models import load_weights, save_weights, to_edge_form
from edgeattn.onnx_graph import Graph
from edgeattn.pipeline_bounds import CalibrationBounds
from edgeattn.pipeline_float import FloatStage, StageProgress, check_recipe_gates, history_of
from edgeattn.pipeline_gate_search import Quantizable
from edgeattn.pipeline_gates import gate_choices, quantizable
from edgeattn.pipeline_layers import domain_result, layer_results
from edgeattn.pipeline_sensitivity import sensitivity_results
from edgeattn.pipeline_tune_store import GateRecord, Tuning
from edgeattn.pipeline_workspace import Workspace
from edgeattn.progress import Progress
from edgeattn.quant.apply import apply_plan_constants
from edgeattn.quant.config import PtqConfig
from edgeattn.quant.gates import GateChoice
from edgeattn.quant.placement import GateRegion, place_quantizers
from edgeattn.quant.plan import Profile, QuantPlan
from edgeattn.quant.ptq import fit_to_kernels, make_plan
from edgeattn.recipe import Recipe
from edgeattn.report import DomainResult, Fp32Result, LayerResult, SensitivityResult
from edgeattn.targets import get_target
from edgeattn.train import evaluate, fit

__all__ = ["Prepared", "prepare"]

logger = logging.getLogger(__name__)

# On small maps threads wait for each other longer than they compute: one is several times faster.
_ONE_THREAD_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A network ready for its targets.

    Attributes:
        fp32: The float graph, which everything is compared with.
        qdq: The quantized graph by profile.
        images: What is measured on, (N, C, H, W).
        labels: (N,).
        reference_logits: Of the float network, (N, classes).
        fp32_result: Its top-1.
        training: Records of both trainings, for the report.
        quant: Summary of the plan, for the report.
        layers: SQNR of every quantized tensor, by profile.
        sensitivity: What each layer and gate costs the logits, by profile.
        domain: Whether the calibration images are like the measured ones.
        train_images: How many images the network learned from.
        data_fingerprint: SHA-256 over both splits.
    """

    fp32: OnnxArtifact
    qdq: Mapping[str, OnnxArtifact]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    reference_logits: NDArray[np.float32]
    fp32_result: Fp32Result
    training: Sequence[Mapping[str, Any]]
    quant: dict[str, Any]
    layers: Mapping[str, Sequence[LayerResult]]
    sensitivity: Mapping[str, Sequence[SensitivityResult]]
    domain: DomainResult | None
    train_images: int
    data_fingerprint: str


def prepare(recipe: Recipe, space: Workspace, profiles: Sequence[str], progress: Progress) -> Prepared:
    """Run every stage before the targets; see `Prepared`."""
    return _Preparation(recipe, space, progress).run(profiles)


class _Preparation:
    def __init__(self, recipe: Recipe, space: Workspace, progress: Progress) -> None:
        self.recipe = recipe
        self.space = space
        self.progress = progress
        self.size = recipe.data.preprocess.size
        self.cache = space.cache
        if self.size <= _ONE_THREAD_SIZE:
            torch.set_num_threads(1)
        self.training: list[dict[str, Any]] = []
        self.checks: dict[str, Any] = {}
        self.gates = GateChoice(recipe.quant.gate_policy, recipe.quant.gate_policies)
        self.searched: GateRecord | None = None

    def run(self, profiles: Sequence[str]) -> Prepared:
        recipe = self.recipe
        check_recipe_gates(recipe)
        splits = load_dataset(recipe.data, Path(), self._counter("data"))
        measured = splits.validation
        if recipe.measure.limit is not None:
            measured = measured.subset(range(min(recipe.measure.limit, len(measured))))
        images = materialize(
            measured, recipe.data.preprocess, cache_dir=self.cache, progress=self._counter("decode")
        )
        stage = FloatStage(recipe, self.space, self.progress)
        model = stage.model(splits)
        self.training += stage.training
        # The plan belongs to one form: the first target decides which is the fastest.
        tuning = self._tune()
        form = tuning.forms if tuning else recipe.attention.edge_form or preferred_forms(*recipe.targets)
        # Training needs the float form's own Parameters; without it, every weight may be adjusted.
        shares = recipe.quant.mode == "qat"
        edge = to_edge_form(model, self.size, self.size, form=form, materialize=not shares)
        export, fp32 = self._export(edge)
        reference, result = _evaluate_float(model, measured, images)
        calibration = self._calibration(splits)
        emitted = cast("Sequence[Profile]", profiles)
        network = quantizable(recipe, edge, export, calibration, emitted)
        choices, self.searched = gate_choices(recipe, tuning, network, self.progress)
        quantized = self._quantize(network, model, calibration, splits, choices)
        qdq, layers = self._emit(quantized, calibration, emitted)
        sensitivity = self._sensitivity(quantized, calibration, emitted)
        return Prepared(
            fp32=fp32,
            qdq=qdq,
            images=images,
            labels=measured.labels,
            reference_logits=reference,
            fp32_result=result,
            training=self.training,
            quant=self._summary(edge, quantized.plan, calibration),
            layers=layers,
            sensitivity=sensitivity,
            domain=domain_result(network.export.model, quantized.plan, list(calibration.batches(1)), images),
            train_images=len(splits.train),
            data_fingerprint=splits.fingerprint,
        )

    # ------------------------------------------------------------------------------ stages

    def _export(self, edge: nn.Module) -> tuple[FloatExport, OnnxArtifact]:
        export = export_float(edge, (1, 3, self.size, self.size))
        path = self.space.folder / "model.fp32.onnx"
        artifact = save_artifact(export.model, path, "fp32", {"recipe": self.recipe.name})
        return export, artifact

    def _calibration(self, splits: DataSplits) -> CalibrationSet:
        return load_calibration(
            self.recipe.calibration,
            splits,
            self.recipe.data.preprocess,
            progress=self._counter("calibration images"),
        )

    def _quantize(
        self,
        network: Quantizable,
        teacher: nn.Module,
        calibration: CalibrationSet,
        splits: DataSplits,
        choices: Sequence[GateChoice],
    ) -> _Quantized:
        recipe, folder, source = self.recipe, self.space.folder, network.network
        images, ptq, profiles = network.images, network.ptq, network.profiles
        key: dict[str, Any] = {
            "version": edgeattn.__version__,
            "graph": sha256_of_file(folder / "model.fp32.onnx"),
            "calibration": calibration.fingerprint,
            "ptq": ptq.model_dump(mode="json"),
            "mode": recipe.quant.mode,
            "gates": [gate.prefix for gate in choices[0].regions(source.module)],
            "policies": [choice.policy for choice in choices],
            **({"gate_policies": dict(choices[0].by_module)} if choices[0].by_module else {}),
            "accept": recipe.accept.model_dump(mode="json") if len(choices) > 1 else None,
            "profiles": list(profiles) if len(choices) > 1 else None,
        }
        bounds = CalibrationBounds.of(recipe.accept, profiles)

        def slack(plan: QuantPlan) -> float:
            return bounds.slack(next(step for step in reversed(plan.ladder) if step.kept))

        def calibrate() -> dict[str, Any]:
            made = [self._plan(source, images, ptq, choices[0])]
            for choice in choices[1:]:
                if slack(made[-1]) >= 0:
                    break
                made.append(self._plan(source, images, ptq, choice))
            # The last one where it keeps the bounds; where none does, the nearest, the fastest of equals.
            chosen = max(range(len(made)), key=lambda i: (slack(made[i]), -i))
            made[chosen].save(folder / "plan.ptq.json")
            return {"policy": choices[chosen].policy}

        done = self.space.run("ptq", key, ["plan.ptq.json"], calibrate)
        self.gates = next(choice for choice in choices if choice.policy == done["policy"])
        gates = self.gates.regions(source.module)
        plan = QuantPlan.load(folder / "plan.ptq.json")
        if recipe.quant.mode == "ptq":
            plan.save(folder / "plan.json")
            return _Quantized(plan, source.module, source.export)
        return self._train_quantized(source, teacher, plan, gates, splits, images, key)

    def _train_quantized(
        self,
        source: FloatNetwork,
        teacher: nn.Module,
        plan: QuantPlan,
        gates: Sequence[GateRegion],
        splits: DataSplits,
        images: Sequence[NDArray[np.float32]],
        ptq_key: Mapping[str, Any],
    ) -> _Quantized:
        recipe, folder, export = self.recipe, self.space.folder, source.export
        # Training goes on from what calibration found: equalized channels are a better start.
        adjusted = Graph(export.model)
        apply_plan_constants(adjusted, plan, "u8")
        student = write_constants(source.module, export, adjusted)
        key = {
            "ptq": ptq_key,
            "qat": recipe.quant.qat.model_dump(mode="json"),
            "plan": sha256_of_file(folder / "plan.ptq.json"),
            "augmentation": recipe.data.augmentation.model_dump(mode="json"),
            "data": splits.fingerprint,
        }
        shape = (1, 3, self.size, self.size)
        trained: FloatExport | None = None

        def train() -> dict[str, Any]:
            nonlocal trained
            placement = place_quantizers(export.model, gates)
            quantized = attach_trainable(student, export, plan, placement)
            result = fit(
                quantized.module,
                splits,
                recipe.quant.qat,
                preprocess=recipe.data.preprocess,
                augmentation=recipe.data.augmentation,
                checkpoint_dir=folder / "checkpoints" / "qat",
                teacher=teacher if recipe.quant.qat.distillation_weight > 0 else None,
                progress=StageProgress(self.progress, "qat"),
                cache_dir=self.cache,
            )
            plain = source.without_pixels(student.eval())
            save_weights(plain, folder / "qat.safetensors")
            module = source.with_pixels(plain)  # not the student: what is quantized is what is written
            trained = export_float(module, shape)
            learned = read_back(quantized, trained, plan, placement)
            graph, fixed = Graph(trained.model), fixed_constants(module, trained)
            counter = self._counter("exact grids")
            learned = fit_to_kernels(learned, graph, placement, images, recipe.quant.ptq, fixed, counter)
            learned.save(folder / "plan.json")
            return {"history": history_of(result, "qat")}

        done = self.space.run("qat", key, ["plan.json", "qat.safetensors"], train)
        self.training += done["history"]
        plain = source.without_pixels(student)
        load_weights(plain, folder / "qat.safetensors", strict=True)
        module = source.with_pixels(plain.eval())
        export = trained or export_float(module, shape)
        return _Quantized(QuantPlan.load(folder / "plan.json"), module, export)

    def _emit(
        self, quantized: _Quantized, calibration: CalibrationSet, profiles: Sequence[Profile]
    ) -> tuple[dict[str, OnnxArtifact], dict[str, list[LayerResult]]]:
        """Write a QDQ graph for each profile, checked against torch, and measure it layer by layer."""
        plan, base = quantized.plan, quantized.export
        images = list(calibration.batches(1))[:CHECK_IMAGES]
        artifacts: dict[str, OnnxArtifact] = {}
        layers: dict[str, list[LayerResult]] = {}
        for profile in profiles:
            model = emit_qdq(base.model, plan, profile, reorders_channels=False)
            adjusted = Graph(base.model)
            apply_plan_constants(adjusted, plan, profile)
            module = write_constants(quantized.module, base, adjusted)
            check = check_export(
                attach_fake_quant(module, base, plan, profile),
                model,
                images,
                self._counter(f"check {profile}"),
            )
            provenance = {
                "recipe": self.recipe.name,
                "method": plan.method,
                "selfcheck": f"at most {check.largest_lsb} LSB from torch in {check.tensors} tensors, "
                f"{check.images} inputs",
            }
            path = self.space.folder / f"model.{profile}.onnx"
            spelled = reorder_channels(model, base.model, plan, profile, images)
            artifacts[profile] = save_artifact(spelled, path, profile, provenance)
            self.checks[profile] = dataclasses.asdict(check)
            layers[profile] = layer_results(adjusted.to_model(), model, plan, profile, images[:8])
        return artifacts, layers

    def _sensitivity(
        self, quantized: _Quantized, calibration: CalibrationSet, profiles: Sequence[Profile]
    ) -> dict[str, list[SensitivityResult]]:
        count = min(self.recipe.measure.sensitivity_images, len(calibration))
        every = len(calibration) // count if count else 1
        images = [image for index, image in enumerate(calibration.batches(1)) if index % every == 0][:count]
        gates = self.gates.regions(quantized.module)
        model = quantized.export.model
        return {
            profile: sensitivity_results(
                model, quantized.plan, profile, images, gates, self._counter(f"sensitivity {profile}")
            )
            for profile in profiles
        }

    # ------------------------------------------------------------------------------ helpers

    def _tune(self) -> Tuning | None:
        """Return what is fastest on the first target; None where the recipe does not ask, or nothing tells."""
        recipe = self.recipe
        if recipe.tune is None or recipe.attention.kind == "none":
            return None
        from edgeattn.pipeline_tune import can_tune, tune

        if why_not := can_tune(get_target(recipe.targets[0]), recipe.tune):
            self.progress.note(f"tune: {why_not} Its usual forms are taken.")
            return None
        return tune(recipe, progress=self.progress)

    def _plan(
        self,
        source: FloatNetwork,
        images: Sequence[NDArray[np.float32]],
        ptq: PtqConfig,
        choice: GateChoice,
    ) -> QuantPlan:
        regions, fixed = choice.regions(source.module), fixed_constants(source.module, source.export)
        counter, plain = self._counter("ptq"), source.plain_model
        return make_plan(source.export.model, images, ptq, regions, counter, fixed, plain)

    def _counter(self, stage: str) -> Callable[[int, int], None]:
        def count(done: int, total: int) -> None:
            self.progress.update(stage, done, total)

        return count

    def _summary(self, edge: nn.Module, plan: QuantPlan, calibration: CalibrationSet) -> dict[str, Any]:
        return {
            "method": plan.method,
            "gate_policy": self.gates.policy,
            "gate_policies": dict(self.gates.by_module),
            "gate_search": self.searched.model_dump(mode="json", exclude={"key"}) if self.searched else None,
            "edge_forms": {
                path: module.form for path, module in edge.named_modules() if isinstance(module, EdgeForm)
            },
            "calibration": calibration.name,
            "calibration_images": len(calibration),
            "calibration_fingerprint": calibration.fingerprint,
            "quantized_activations": len(plan.activations),
            "quantized_weights": len(plan.weights),
            "selfcheck": self.checks,
            "ladder": [step.model_dump() for step in plan.ladder],
            "provenance": dict(plan.provenance),
        }


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """A plan, with the module and the export that it belongs to."""

    plan: QuantPlan
    module: nn.Module
    export: FloatExport


def _evaluate_float(
    model: nn.Module, measured: ImageSet, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], Fp32Result]:
    result = evaluate(model, images, measured.labels)
    hits = round(result.top1 * result.n)
    return result.logits, Fp32Result(
        top1=result.top1, n=result.n, top1_interval=wilson_interval(hits, result.n)
    )
