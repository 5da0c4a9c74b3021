"""A Hugging Face model folder, read strictly and one tensor at a time.

Only `config.json`, `generation_config.json` and safetensors files are opened. Code (`auto_map`) and
pickles (`.bin`) are never touched. Every size is checked in Python integers before a byte of a
tensor is read. Tensors are read with plain reads rather than mapped, so that a file which shrinks
meanwhile is an error and not a SIGBUS.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import CheckpointError
from edgetok.formats import strict_json
from edgetok.formats.safetensors_file import (
    MAX_HEADER_BYTES,
    TensorInfo,
    read_exactly,
    read_header,
)

MAX_TENSORS = 1 << 18
MAX_SHARDS = 4096

_READABLE = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
INDEX_FILE = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """An opened model folder. Made by `open_checkpoint`.

    Attributes:
        folder: its path.
        config: `config.json`.
        generation_config: `generation_config.json`, empty where there is none.
        infos: every tensor's dtype, shape and place.
        fingerprint: sha256 over the JSON files, the tensors' tables, the shards' sizes and times;
            another checkpoint, or the same one changed, has another.
        notes: what a report says about how it was read.
    """

    notes: Sequence[str] = ()

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        infos: dict[str, TensorInfo],
        fingerprint: str,
    ) -> None:
        self.folder = folder
        self.config = config
        self.generation_config = generation_config
        self.infos: Mapping[str, TensorInfo] = MappingProxyType(infos)
        self.fingerprint = fingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors."""
        return tuple(self.infos)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors."""
        return {name: info.shape for name, info in self.infos.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.infos.values())

    def tensor(
        self, name: str, rows: tuple[int, int] | None = None, *, flat: bool = False
    ) -> npt.NDArray[np.float32]:
        """Read one tensor, or rows `rows[0]` to `rows[1] - 1` of it, as float32.

        Args:
            name: of the tensor.
            rows: see above; None reads all.
            flat: take all but the last of its dims together as rows.

        Raises:
            CheckpointError: absent, not a floating-point tensor, rows outside it, a value that is
                no finite float32, or the file shrank.
        """
        info = self.infos.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.folder}: tensor {name!r} is missing; the download may be incomplete"
            )
        dtype = _READABLE.get(info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{info.path.name}: tensor {name!r} has dtype {info.dtype}, expected one of "
                f"{', '.join(_READABLE)}; convert the original, unquantised checkpoint"
            )
        dims = (math.prod(info.shape[:-1]), info.shape[-1]) if flat and info.shape else info.shape
        count = dims[0] if dims else 1
        first, end = (0, count) if rows is None else rows
        if not 0 <= first <= end <= count:
            raise CheckpointError(
                f"{info.path.name}: rows {first}..{end} of tensor {name!r} with {count} rows"
            )
        width = math.prod(dims[1:])
        raw = np.empty((end - first) * width, dtype)
        read_exactly(info.path, info.begin + first * width * raw.itemsize, raw.view(np.uint8))
        values = _to_float32(raw, info.dtype)
        _require_finite(values, raw, info, name, first * width)
        shape = (end - first, *dims[1:]) if dims else ()
        return values.reshape(shape)

    def integers(self, name: str) -> npt.NDArray[np.int32]:
        """Read a tensor of 32- or 64-bit integers.

        Raises:
            CheckpointError: absent, of another dtype, beyond 32 bits, or the file shrank.
        """
        info = self.infos.get(name)
        if info is None or info.dtype not in ("I32", "I64"):
            result = "missing" if info is None else f"of dtype {info.dtype}"
            raise CheckpointError(f"{self.folder}: tensor {name!r} is {result}, expected integers")
        raw = np.empty(math.prod(info.shape), "<i4" if info.dtype == "I32" else "<i8")
        read_exactly(info.path, info.begin, raw.view(np.uint8))
        if raw.size and (int(raw.max()) >= 1 << 31 or int(raw.min()) < -(1 << 31)):
            raise CheckpointError(f"{self.folder}: tensor {name!r} has integers beyond 32 bits")
        return raw.astype(np.int32, copy=False).reshape(info.shape)

    def rows(self, name: str, rows_at_once: int) -> Iterator[npt.NDArray[np.float32]]:
        """Read a tensor in pieces of `rows_at_once` rows, so that little of it is in memory."""
        count = self.infos[name].shape[0] if name in self.infos else 0
        for first in range(0, count, rows_at_once):
            yield self.tensor(name, (first, min(first + rows_at_once, count)))


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a Hugging Face model folder and check every file's table.

    Raises:
        CheckpointError: a file is missing, damaged or hostile, or there are only pickles.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a folder with a config.json")
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise CheckpointError(
                f"{folder}: contains an adapter, not a whole model; merge it into its model first, "
                "with peft's merge_and_unload"
            )
        raise CheckpointError(
            f"{folder}: has no config.json; give a Hugging Face model folder or a hub id"
        )
    digest = hashlib.sha256()
    config = _json(folder / "config.json", digest)
    generation_path = folder / "generation_config.json"
    generation_config = _json(generation_path, digest) if generation_path.exists() else {}
    infos: dict[str, TensorInfo] = {}
    shards, listed = _shards(folder)
    for shard in shards:
        for name, info in read_header(folder / shard, digest).items():
            if name in infos:
                raise CheckpointError(
                    f"{shard}: tensor {name!r} also lies in {infos[name].path.name}; "
                    "download the checkpoint again"
                )
            infos[name] = info
        if len(infos) > MAX_TENSORS:
            raise CheckpointError(f"{folder}: more than {MAX_TENSORS:,} tensors")
    for name, shard in listed.items():
        if name not in infos or infos[name].path.name != shard:
            raise CheckpointError(
                f"{INDEX_FILE}: says that {shard} holds tensor {name!r}, which it does not; "
                "download the checkpoint again"
            )
    return Checkpoint(folder, config, generation_config, infos, digest.hexdigest())


def check_shards(folder: Path) -> None:
    """Refuse a folder whose weights are not all there.

    Raises:
        CheckpointError: files that the index names are missing, or the index is damaged.
    """
    if (folder / INDEX_FILE).exists():
        _shards(folder)


def _json(path: Path, digest: hashlib._Hash) -> dict[str, Any]:
    data = strict_json.read_bytes(path, max_bytes=strict_json.MAX_BYTES)
    digest.update(path.name.encode() + b"\0" + data)
    return strict_json.loads_object(data, path.name)


def _shards(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the shard files, and which the index says holds each tensor."""
    if (folder / INDEX_FILE).exists():
        index = strict_json.read_object(folder / INDEX_FILE, max_bytes=MAX_HEADER_BYTES)
        listed = index.get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise CheckpointError(f"{INDEX_FILE}: weight_map is {listed!r:.40}, expected an object")
        for name, shard in listed.items():
            if not isinstance(shard, str) or not _is_basename(shard):
                raise CheckpointError(
                    f"{INDEX_FILE}: shard {shard!r} of tensor {name!r} is not a plain file name"
                )
        shards = sorted(set(listed.values()))
        if len(shards) > MAX_SHARDS:
            raise CheckpointError(
                f"{INDEX_FILE}: {len(shards)} shards, expected at most {MAX_SHARDS}"
            )
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} files of weights are missing: {names}; "
                "finish the download, e.g. with `hf download OWNER/NAME --local-dir FOLDER`, which "
                "goes on where it stopped"
            )
        return shards, listed
    if (folder / _SINGLE).exists():
        return [_SINGLE], {}
    other = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(other) == 1:
        return other, {}
    if other:
        raise CheckpointError(
            f"{folder}: has {len(other)} safetensors files but no {INDEX_FILE} that lists "
            "their tensors; download the checkpoint again"
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder}: has weights only in {pickles[0]}, a pickle, which can run code and is "
            "never opened; take a revision with safetensors, or save it again with transformers' "
            "save_pretrained(safe_serialization=True)"
        )
    raise CheckpointError(f"{folder}: has no safetensors file; download the checkpoint again")


def _is_basename(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and not set(name) & set("/\\\0:")
        and name.endswith(".safetensors")
    )


def _to_float32(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32, copy=False)


def _require_finite(
    values: npt.NDArray[np.float32],
    raw: npt.NDArray[Any],
    info: TensorInfo,
    name: str,
    first: int,
) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    at = int(np.argmin(finite))
    index = [int(i) for i in np.unravel_index(first + at, info.shape)] if info.shape else []
    if info.dtype == "F64" and math.isfinite(float(raw[at])):
        what = f"{float(raw[at])}, beyond float32"
    else:
        what = str(float(values[at]))
    raise CheckpointError(
        f"{info.path.name}: tensor {name!r} holds {what} at {index}; the checkpoint is damaged, "
        "take another copy or revision"
    )
