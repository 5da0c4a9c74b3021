"""How long the stages of a conversion take beside each other, from counts alone.

In seconds of one core with AVX2 (AMD EPYC, November 2026, SmolLM2-135M); another machine is faster
or slower at all of it alike, more or less, and measures by how much while it works.
"""

from __future__ import annotations

import math

from edgetok.converter.allocate.scope import MEASURED_TOKENS
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.formats.layout import linear_shapes
from edgetok.models.operations import operations, stages
from edgetok.models.spec import DecoderSpec

_PRODUCTS = 26e9  # multiply-adds a second, of float32 and of the CPU backend's integers
_READ = 1.2e-8  # seconds a weight: read, rounded to nearest, written
_ROUNDED = {"auto": 9e-7, "gptq": 4e-7, "awq": 3e-7, "rtn": 0.0}  # the same, by method
_TRAINED = 8  # passes of products in a step of training
_TRAINED_TOKENS = 1024
_STEPS = 100
_COMPARED_HEADS = 4  # an exponential of float64 takes as long as several products
_MEASURED = 5.0  # passes of products, forward and back
_MEASURED_HEADS = 9
_TRIED = 3e-4  # seconds an input of a matrix: all ways to store it, on some of its rows
_CACHE_TOKENS = 5600  # all runs of `measure_cache` together; half of them for what is only rounded


def expected_seconds(
    spec: DecoderSpec,
    parameters: int,
    options: ConvertOptions,
    *,
    generated: int,
    compared: int,
    measured: bool = False,
) -> dict[str, float]:
    """Return the seconds of each stage to come, by its title, in order.

    Args:
        spec: the decoder.
        parameters: its weights.
        options: of the conversion.
        generated: tokens of calibration text that the model writes.
        compared: tokens on which the result is compared with the original.
        measured: whether the sensitivity of each tensor is.
    """
    shapes = linear_shapes(spec)
    layers = sum(s.N * s.K for name, s in shapes.items() if name.startswith("layers."))
    ends = parameters - layers
    firsts = [stage[0].weight for stage in stages(operations(spec))]
    inputs = sum(shapes[name].K ** 2 for name in firsts if name.startswith("layers."))
    tokens = options.calibration_windows * min(options.window_tokens, spec.context_tokens)
    found: dict[str, float] = {}
    if generated:
        found["Generating calibration text"] = generated * parameters / _PRODUCTS
    rounding = _READ * parameters + _ROUNDED[options.method] * layers
    if measured:
        products = MEASURED_TOKENS * (_MEASURED * layers + inputs + _MEASURED_HEADS * ends)
        tried = sum(s.K for name, s in shapes.items() if name.startswith("layers."))
        found["Measuring sensitivity"] = products / _PRODUCTS + _TRIED * tried
        rounding += _ROUNDED[options.method] * ends  # a head of fewer than 8 bits
    if options.calibrates:
        products = tokens * (1.25 * layers + 0.6 * inputs)
        refine = 0 if learns_whole(parameters) else options.refinement(parameters)
        products += refine * _TRAINED * _TRAINED_TOKENS * layers
        found[f"Quantising with {options.method}"] = rounding + products / _PRODUCTS
    else:
        found["Quantising"] = rounding
    if "tune" in options.steps and learns_whole(parameters):
        steps = options.refinement(parameters)
        title = "Refining codes and scales" if steps else "Tuning scales"
        products = (steps or _STEPS) * _TRAINED * _TRAINED_TOKENS * parameters
        found[title] = products / _PRODUCTS
    if compared:
        products = compared * (2 * layers + _COMPARED_HEADS * ends)
        found["Comparing with the original"] = products / _PRODUCTS
    if options.measure_cache and not spec.both_sides:
        products = _CACHE_TOKENS / options.cache_divisor(parameters) * parameters
        found["Measuring the KV cache"] = products / _PRODUCTS
    return {title: max(seconds, math.ulp(1.0)) for title, seconds in found.items()}
