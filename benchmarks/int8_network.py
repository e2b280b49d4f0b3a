"""MinkUNet in int8 after training: steps calibrated on one scan, every convolution but the first in int8."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scenes import Scene
from torch import Tensor, nn
from torch.nn import functional
from unet_units import INPUT, Unit, run_units, unet_units

from pointlib.ops import fused_conv, quantized
from pointlib.ops.kernel_map import KernelMap
from pointlib.tensor import SparseTensor

LEVELS = 127
"""Steps between 0 and the largest magnitude."""


class _Packed(NamedTuple):
    """A unit ready to run: what quantized.sparse_conv_int8 takes."""

    weight: Tensor
    scale: Tensor
    shift: Tensor
    residual_scale: float | None


class _Pyramid:
    """The voxels of one scan at every level, and the maps between them, each built when it is first asked for."""

    def __init__(self, coords: Tensor, feats: Tensor) -> None:
        x = SparseTensor(feats, coords)
        self._maps, self._sites = x.maps, [x.sites]
        self._points: dict[int, KernelMap] = {}

    def kernel_map(self, unit: Unit, conv: nn.Module) -> KernelMap:
        sites, level = self._sites, unit.level
        if unit.kind == "point":
            if level not in self._points:
                rows = len(sites[level])
                each = torch.arange(rows, dtype=torch.int32)
                ends = torch.tensor([0, rows])
                self._points[level] = KernelMap(each, each, ends, rows, rows, 0)
            return self._points[level]
        if unit.kind == "up":
            return self._maps.inverse(sites[level + 1], conv.spec)[1]
        source = level - 1 if unit.kind == "down" else level
        reached, kernel_map = self._maps.conv(sites[source], conv.spec)
        if level == len(sites):
            sites.append(reached)
        return kernel_map


class Int8MinkUNet:
    """Called with (coords, feats, keep maps of the last call); returns float32 logits (N, num_classes).

    Symmetric steps, one a tensor from the largest magnitude on the calibration scan, one a channel for weights. Batch
    norms become scale and shift; ReLU, residual and requantization happen inside the convolution; skip connections are
    a convolution's second input, which is why they share the first one's step. The first convolution (4 channels) and
    the classifier are float32.

    Args:
        model: pointlib's MinkUNet.
        scene: To calibrate on.
    """

    def __init__(self, model: nn.Module, scene: Scene) -> None:
        self._model = model
        self._units = unet_units(model)
        self._pyramid: _Pyramid | None = None
        with torch.inference_mode():
            steps = self._calibrate(scene)
            self._first_step = steps[self._units[0].name]
            self._packed = {unit.name: self._pack(unit, steps) for unit in self._units[1:]}

    @torch.inference_mode()
    def __call__(self, coords: Tensor, feats: Tensor, keep: bool) -> Tensor:
        if self._pyramid is None or not keep:
            self._pyramid = _Pyramid(coords, feats)
        pyramid = self._pyramid

        def run(unit: Unit, inputs: list[Tensor], residual: Tensor | None) -> Tensor:
            if unit.inputs == (INPUT,):
                return quantized.quantize(
                    self._in_float(unit, inputs, None, pyramid), self._first_step
                )
            kernel_map = pyramid.kernel_map(unit, self._conv(unit))
            weight, scale, shift, residual_scale = self._packed[unit.name]
            return quantized.sparse_conv_int8(
                *(inputs, weight, kernel_map, scale, shift, residual, residual_scale),
                activation="relu" if unit.relu else "none",
                out_dtype=torch.float32 if unit is self._units[-1] else torch.int8,
            )

        linear = self._model.classifier[0]
        return functional.linear(run_units(self._units, feats, run), linear.weight, linear.bias)

    def _calibrate(self, scene: Scene) -> dict[str, float]:
        """The step of every unit's output; the last one's is 1, because it stays float32."""
        pyramid = _Pyramid(scene.coords, scene.feats)
        largest: dict[str, float] = {}

        def run(unit: Unit, inputs: list[Tensor], residual: Tensor | None) -> Tensor:
            out = self._in_float(unit, inputs, residual, pyramid)
            largest[unit.name] = float(out.abs().max())
            return out

        run_units(self._units, scene.feats, run)
        for unit in self._units:  # what is read side by side shares a step
            shared = max((largest.get(name, 0.0) for name in unit.inputs), default=0.0)
            largest.update((name, shared) for name in unit.inputs)
        return {name: value / LEVELS for name, value in largest.items()} | {
            self._units[-1].name: 1.0
        }

    def _in_float(
        self, unit: Unit, inputs: list[Tensor], residual: Tensor | None, pyramid: _Pyramid
    ) -> Tensor:
        kernel_map = None if unit.kind == "point" else pyramid.kernel_map(unit, self._conv(unit))
        scale, shift = self._scale_and_shift(unit)
        slope = 0.0 if unit.relu else 1.0
        return fused_conv.fused_sparse_conv(
            inputs, self._kernel(unit), kernel_map, scale, shift, residual, slope
        )

    def _pack(self, unit: Unit, steps: dict[str, float]) -> _Packed:
        values, weight_step = quantized.quantize_weight(self._kernel(unit))
        scale, shift = self._scale_and_shift(unit)
        out_step = steps[unit.name]
        return _Packed(
            quantized.pack_int8_weight(values),
            scale * weight_step * (steps[unit.inputs[0]] / out_step),
            shift / out_step,
            None if unit.residual is None else steps[unit.residual] / out_step,
        )

    def _conv(self, unit: Unit) -> nn.Module:
        return self._model.get_submodule(unit.name)

    def _kernel(self, unit: Unit) -> Tensor:
        kernel = self._conv(unit).kernel.detach()
        return kernel.unsqueeze(0) if kernel.dim() == 2 else kernel

    def _scale_and_shift(self, unit: Unit) -> tuple[Tensor, Tensor]:
        norm = self._model.get_submodule(unit.norm)
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        return scale, norm.bias.detach() - norm.running_mean * scale
