"""Read quantised checkpoints (GPTQ, AWQ, compressed-tensors) and keep their integers.

    gptq                qweight [ceil(K*b/32), N], qzeros [G, ceil(N*b/32)], scales [G, N],
                        g_idx [K]; zero points minus one unless checkpoint_format is "gptq_v2"
    awq (gemm)          qweight [K, N/8], qzeros [G, N/8], scales [G, N]; 4 bits, the eight codes
                        of a word in the order 0 2 4 6 1 3 5 7
    compressed-tensors  weight_packed [N, ceil(K*b/32)], weight_scale [N, G], weight_shape, and
                        weight_zero_point [ceil(N*b/32), G] where not symmetric;
                        "int-quantized": weight int8 [N, K], which is kept as 8 bits,
                        weight_scale [N, G] or one number, weight_zero_point int8 like it

The rest of the converter sees floating-point tensors under their usual names; some also have codes.

Source: GPTQModel and AutoAWQ, documentation of their checkpoint formats; compressed-tensors 0.20,
`pack_quantized` and `naive_quantized`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import FLOAT16_MAX, Quantised
from edgetok.converter.read.dense_words import unpack_words
from edgetok.converter.read.quantised_checkpoint import KEY, WrappedCheckpoint
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import TensorInfo, read_bytes

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS = (2, 3, 4, 8)
_GROUPS = (256, 128, 64, 32, 16)  # what an artefact holds; larger ones are cut, scales repeated
_PARTS = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        *("input_scale", "input_zero_point"),  # of activations, which edgetok rounds in its own way
    ),
}
_FORMATS = ("pack-quantized", "int-quantized")  # of compressed-tensors
_INT8 = "weight"  # the part that "int-quantized" has in place of weight_packed


class PackedCheckpoint(WrappedCheckpoint):
    """A checkpoint whose packed modules read as `NAME.weight`, float32, with codes to be had."""

    def __init__(self, inner: Checkpoint) -> None:
        """Find the packed modules.

        Raises:
            UnsupportedError: another way of quantising than the three.
            CheckpointError: a part of a module is missing.
        """
        settings = inner.config[KEY]
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        if not isinstance(method, str) or method not in _PARTS:
            known = ", ".join((*_PARTS, "mxfp4", "bitnet", "fp8"))
            raise UnsupportedError(
                f"config.json: {KEY} has quant_method {method!r:.40}, expected one of {known}; "
                "convert the original checkpoint"
            )
        require_known(method, settings)
        if method == "compressed-tensors":
            _require_integers(settings)
        first, *others = _PARTS[method]
        infos = dict(inner.infos)
        self._shapes: dict[str, tuple[int, int]] = {}
        for name in inner.names:
            module, _, part = name.rpartition(".")
            whole = method == "compressed-tensors" and _is_int8(inner, name)
            if part != first and not whole:
                continue
            for other in (first, *others):
                infos.pop(f"{module}.{other}", None)
            shape = _shape(inner, method, module)
            self._shapes[module + ".weight"] = shape
            info = inner.infos[name]
            infos[module + ".weight"] = TensorInfo("F32", shape, info.path, info.begin, info.nbytes)
        super().__init__(inner, method, infos, self._shapes.keys(), suffix=f".{first}")
        self._settings = settings

    def _read_codes(self, name: str) -> Quantised:
        module = name.removesuffix(".weight")
        result = _READERS[self.method](self._inner, module, self._shapes[name], self._settings)
        return _checked(module, result, self._shapes[name])


# Settings that say how a checkpoint was made, or are looked at elsewhere here. One that is not
# listed may change what the integers mean.
_KNOWN = frozenset(
    re.findall(
        r"\w+",
        """act_group_aware backend batch_size bits block_name_to_quantize cache_block_outputs
        checkpoint_format config_groups damp_auto_increment damp_percent dataset desc_act
        disable_exllama do_fuse dynamic exllama_config format fuse_max_seq_len
        global_compression_ratio group_size hyb_act ignore kv_cache_scheme lm_head
        max_input_length meta model_file_base_name model_name_or_path model_seqlen
        module_name_preceding_first_block modules_in_block_to_quantize modules_to_fuse
        modules_to_not_convert mse pack_dtype pad_token_id q_group_size quant_method
        quantization_status sparsity_config static_groups sym tokenizer true_sequential
        use_cuda_fp16 use_exllama version w_bit zero_point""",
    )
)


def require_known(method: str, settings: dict[str, Any]) -> None:
    """Refuse settings that may change what the integers, or floats, mean.

    Raises:
        UnsupportedError: names the setting.
    """
    for key, value in settings.items():
        if key not in _KNOWN and value not in (None, False, {}, [], ""):
            raise UnsupportedError(
                f"config.json: {KEY} has {key} {value!r:.60}, which may change what the integers "
                "mean; convert the original checkpoint"
            )
    form = settings.get("checkpoint_format", "gptq")
    words = settings.get("pack_dtype", "int32")
    if method == "gptq" and (form not in ("gptq", "gptq_v2") or words != "int32"):
        raise UnsupportedError(
            f"config.json: {KEY} has checkpoint_format {form!r:.40} in {words!r:.20}, expected "
            "gptq or gptq_v2 in int32"
        )
    sparse = settings.get("sparsity_config") or {}
    if method == "compressed-tensors" and (
        not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense"
    ):
        raise UnsupportedError(f"config.json: {KEY} has sparsity_config {sparse!r:.60}")
    version = settings.get("version", "gemm")
    if method == "awq" and (str(version).lower() != "gemm" or settings.get("bits", 4) != 4):
        raise UnsupportedError(
            f"config.json: {KEY} is awq {version!r:.20} with {settings.get('bits')!r:.10} bits, "
            "expected gemm with 4"
        )


def _require_integers(settings: dict[str, Any]) -> None:
    for form in compressed_formats(settings):
        if form not in _FORMATS:
            raise UnsupportedError(
                f"config.json: {KEY} has format {form!r:.40}, expected one of "
                f"{', '.join((*_FORMATS, 'float-quantized'))}, the last for all groups"
            )


def compressed_formats(settings: dict[str, Any]) -> list[Any]:
    """Return the formats of a compressed-tensors checkpoint; of "mixed-precision" its groups'."""
    form = settings.get("format")
    groups = settings.get("config_groups")
    if form != "mixed-precision" or not isinstance(groups, dict):
        return [form]
    return [group.get("format") if isinstance(group, dict) else group for group in groups.values()]


def _is_int8(inner: Checkpoint, name: str) -> bool:
    """Whether a tensor is a matrix of "int-quantized"."""
    return name.endswith(f".{_INT8}") and inner.infos[name].dtype == "I8"


def _shape(inner: Checkpoint, method: str, module: str) -> tuple[int, int]:
    """[N, K] of a packed module."""

    def dims(part: str, rank: int) -> tuple[int, ...]:
        info = inner.infos.get(f"{module}.{part}")
        if info is None:
            raise CheckpointError(f"{inner.folder}: tensor {module}.{part} is missing")
        return _ranked(info.shape, rank, f"{module}.{part}")

    if method == "compressed-tensors" and f"{module}.weight_packed" not in inner.infos:
        shape = list(dims(_INT8, 2))
    elif method == "compressed-tensors":
        dims("weight_shape", 1)
        shape = [int(size) for size in inner.integers(f"{module}.weight_shape")]
    elif method == "awq":
        words = dims("qweight", 2)
        shape = [8 * words[1], words[0]]
    else:
        shape = [dims("qweight", 2)[1], dims("g_idx", 1)[0]]
    if len(shape) != 2 or not all(0 < size <= 1 << 24 for size in shape):
        raise CheckpointError(f"{inner.folder}: {module} has shape {shape}")
    return shape[0], shape[1]


def _ranked(shape: tuple[int, ...], rank: int, name: str) -> tuple[int, ...]:
    if len(shape) != rank:
        raise CheckpointError(f"tensor {name!r} has shape {list(shape)}, expected {rank} axes")
    return shape


def _words(inner: Checkpoint, name: str) -> npt.NDArray[Any]:
    result = inner.integers(name)
    _ranked(result.shape, 2, name)
    return result


def _scales(
    inner: Checkpoint, name: str, *, ranks: tuple[int, ...] = (2,)
) -> npt.NDArray[np.float16]:
    found = inner.tensor(name)
    if len(found.shape) not in ranks:
        _ranked(found.shape, ranks[-1], name)
    greatest = float(np.abs(found).max(initial=0.0))
    if greatest > FLOAT16_MAX:
        raise UnsupportedError(f"tensor {name!r} holds a scale that does not fit into float16")
    scales = found.astype(np.float16)
    # Below its normal numbers float16 keeps fewer bits; what matters is the matrix's own range.
    if float(np.abs(scales.astype(np.float32) - found).max(initial=0.0)) > greatest / 1024:
        raise UnsupportedError(
            f"tensor {name!r} holds scales up to {greatest:.3g}, too small for float16, the type "
            "of an artefact's scales; convert the original checkpoint"
        )
    return scales


def _width(module: str, words: int, count: int) -> int:
    """Bits of `count` codes in so many words."""
    for bits in _BITS:
        if -(-count * bits // 32) == words:
            return bits
    raise UnsupportedError(
        f"{module}: {count} codes in {words} words, expected 2, 3, 4 or 8 bits each"
    )


def _gptq(
    inner: Checkpoint, module: str, shape: tuple[int, int], settings: dict[str, Any]
) -> Quantised:
    N, K = shape
    words, zero_words = _words(inner, module + ".qweight"), _words(inner, module + ".qzeros")
    scales = _scales(inner, module + ".scales")
    order = inner.integers(module + ".g_idx")
    bits = _width(module, len(words), K)
    group = -(-K // max(len(scales), 1))
    if not np.array_equal(order, np.arange(K) // group):
        raise UnsupportedError(
            f"{module}: its groups are not of adjacent inputs (desc_act), which would need "
            "a gather in every step; use a checkpoint without act-order"
        )
    _require_shape(module, "qzeros", zero_words, (len(scales), -(-N * bits // 32)))
    zeros = _gptq_zeros(module, unpack_words(zero_words, bits, N).T, bits, settings)
    return Quantised(unpack_words(words.T, bits, K), scales.T, zeros, bits, group)


def _gptq_zeros(
    module: str, stored: npt.NDArray[np.uint8], bits: int, settings: dict[str, Any]
) -> npt.NDArray[np.uint8] | None:
    """Zero points, of which "gptq" stores one less and "gptq_v2" all; None: in the middle."""
    second = settings.get("checkpoint_format", "gptq") == "gptq_v2"
    middle = 1 << (bits - 1)
    if settings.get("sym") is True:
        # Some writers store the middle itself under "gptq", too.
        if (stored == middle).all() or (not second and (stored == middle - 1).all()):
            return None
        raise UnsupportedError(
            f"{module}: config.json says sym, but its zero points are not all {middle}; loaders "
            "read it differently: convert the original checkpoint"
        )
    if second:
        return stored
    if int(stored.max(initial=0)) == (1 << bits) - 1:
        raise UnsupportedError(
            f"{module}: a zero point of {1 << bits} with {bits} bits, which loaders read "
            "differently; save it as gptq_v2"
        )
    return stored + np.uint8(1)


def _awq(
    inner: Checkpoint, module: str, shape: tuple[int, int], settings: dict[str, Any]
) -> Quantised:
    N, K = shape
    scales = _scales(inner, module + ".scales")
    zero_words = _words(inner, module + ".qzeros")
    _require_shape(module, "qzeros", zero_words, (len(scales), N // 8))

    def ordered(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        codes = np.empty((len(words), N), np.uint8)
        result = unpack_words(words, 4, N)
        for i, column in enumerate(_AWQ_ORDER):
            codes[:, column::8] = result[:, i::8]
        return np.ascontiguousarray(codes.T)

    codes = ordered(_words(inner, module + ".qweight"))
    group = -(-K // max(len(scales), 1))
    return Quantised(codes, scales.T, ordered(zero_words), 4, group)


def _compressed(
    inner: Checkpoint, module: str, shape: tuple[int, int], settings: dict[str, Any]
) -> Quantised:
    N, K = shape
    if module + ".weight_g_idx" in inner.infos:
        raise UnsupportedError(
            f"{module}: an artefact cannot hold weight_g_idx; use a checkpoint without act-order"
        )
    if module + ".weight_packed" not in inner.infos:
        return _int8(inner, module, shape)
    words = _words(inner, module + ".weight_packed")
    bits = _width(module, words.shape[-1], K)
    scales = _scales(inner, module + ".weight_scale")
    zeros = None
    if module + ".weight_zero_point" in inner.infos:
        zero_words = _words(inner, module + ".weight_zero_point")
        _require_shape(
            module, "weight_zero_point", zero_words, (-(-N * bits // 32), scales.shape[-1])
        )
        zeros = np.ascontiguousarray(unpack_words(zero_words.T, bits, N).T)
    group = -(-K // max(scales.shape[-1], 1))
    return Quantised(unpack_words(words, bits, K), scales, zeros, bits, group)


def _int8(inner: Checkpoint, module: str, shape: tuple[int, int]) -> Quantised:
    """Whole bytes; a row's groups, a row, or the matrix have a scale."""
    N, K = shape

    def codes(part: str) -> npt.NDArray[np.uint8]:
        info = inner.infos[f"{module}.{part}"]
        if info.dtype != "I8":
            raise CheckpointError(f"tensor {module}.{part} has dtype {info.dtype}, expected I8")
        return read_bytes(info) ^ np.uint8(128)  # two's complement plus 128

    def spread(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(values.reshape(1, 1), (N, 1)) if values.size == 1 else values

    scales = spread(_scales(inner, f"{module}.weight_scale", ranks=(0, 1, 2)))
    zeros = None
    if f"{module}.weight_zero_point" in inner.infos:
        zeros = spread(codes("weight_zero_point"))
    _ranked(scales.shape, 2, f"{module}.weight_scale")
    group = -(-K // max(scales.shape[-1], 1))
    return Quantised(codes(_INT8), scales, zeros, 8, group)


_READERS: dict[str, Callable[[Checkpoint, str, tuple[int, int], dict[str, Any]], Quantised]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
}


def _checked(module: str, q: Quantised, shape: tuple[int, int]) -> Quantised:
    """Return the matrix with groups that an artefact supports."""
    N, K = shape
    group = next((g for g in _GROUPS if q.group_size % g == 0), None)
    if group is None or (K % q.group_size and q.group_size not in _GROUPS):
        raise UnsupportedError(
            f"{module}: groups of {q.group_size} inputs, expected a multiple of 16"
        )
    repeat = q.group_size // group
    G = -(-K // q.group_size)
    _require_shape(module, "codes", q.codes, (N, K))
    _require_shape(module, "scales", q.scales, (N, G))
    scales = np.repeat(q.scales, repeat, axis=1)
    zeros = q.zeros
    if zeros is not None:
        _require_shape(module, "zero points", zeros, (N, G))
        zeros = np.ascontiguousarray(np.repeat(zeros, repeat, axis=1))
    return Quantised(q.codes, np.ascontiguousarray(scales), zeros, q.bits, group)


def _require_shape(
    module: str, what: str, values: npt.NDArray[Any], expected: tuple[int, ...]
) -> None:
    if values.shape != expected:
        raise CheckpointError(
            f"{module}: {what} are {list(values.shape)}, expected {list(expected)}"
        )
