"""Read GGUF files as checkpoints: tensors under transformers' names, their integers kept.

Types of `gguf_codes.KINDS` are kept as they are, Q2_K is dequantised by the `gguf`
package. If most layers are of such a type, the whole model is read as floating-point
weights and quantised as asked.

Some files hold a tied matrix twice, as `token_embd` and as `output`: it is read once, the better of
the two (`gguf_tied.py`).

Source: ggml, docs/gguf.md; names from the `gguf` package's tensor map.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.converter.durable import write_durably
from edgetok.converter.quantised import Quantised
from edgetok.converter.read.gguf_codes import KINDS, read_codes
from edgetok.converter.read.gguf_config import FACTORS, architecture_of, config_of, token_ids
from edgetok.converter.read.gguf_tied import tied_once
from edgetok.converter.read.gguf_tokenizer import tokenizer_files
from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.errors import CheckpointError, MissingExtraError
from edgetok.formats.gguf import BLOCKS, open_gguf
from edgetok.formats.safetensors_file import TensorInfo, read_exactly
from edgetok.models.registry import read_family

_PLAIN = ("F32", "F16", "BF16", "F64")


class GgufCheckpoint(CodedCheckpoint):
    """An opened GGUF file.

    Attributes:
        notes: what became of its types of tensors, for the report.
    """

    def __init__(self, path: Path) -> None:
        """Read the file's table.

        Raises:
            CheckpointError: it is truncated, damaged or hostile.
            UnsupportedError: an architecture, a field or a type of tensors that is not known here.
            MissingExtraError: the `gguf` package is not installed.
        """
        try:
            import gguf
        except ImportError as error:
            raise MissingExtraError(
                f"{path.name}: GGUF files need the gguf package: pip install 'edgetok[gguf]'"
            ) from error
        file, twice = tied_once(open_gguf(path))
        self._file = file
        architecture = architecture_of(file)
        factors = {name: self._factors(name) for name in FACTORS if name in file.infos}
        config = config_of(file, factors)
        vocab_size = int(config["vocab_size"])
        family = read_family(config)
        wanted = {source.name for source in family.tensors.values()}
        arch = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[
            file.fields["general.architecture"]
        ]
        names = gguf.get_tensor_name_map(arch, family.spec.num_layers)
        self._stored = {name: names.get_name(name, (".weight", ".bias")) or name for name in wanted}
        renamed = {
            name: file.infos[stored]
            for name, stored in self._stored.items()
            if stored in file.infos
        }
        claimed = {*self._stored.values(), *FACTORS}
        infos = renamed | {name: i for name, i in file.infos.items() if name not in claimed}
        super().__init__(path, config, token_ids(file, vocab_size), infos, file.fingerprint)
        self._add = -architecture.norm_add
        self._heads: dict[str, int] = {}
        if architecture.interleaved:
            self._heads = {"q_proj": family.spec.num_heads, "k_proj": family.spec.num_kv_heads}
        matrices = {n: i for n, i in renamed.items() if len(i.shape) == 2}
        exact = [name for name, info in matrices.items() if info.dtype in KINDS]
        layers = {n: int(np.prod(i.shape)) for n, i in matrices.items() if ".layers." in n}
        if 2 * sum(layers.get(name, 0) for name in exact) < sum(layers.values()):
            exact = []
        self.coded = frozenset(exact)
        kinds = Counter(matrices[name].dtype for name in exact)
        self.method = f"GGUF {kinds.most_common(1)[0][0]}" if kinds else "GGUF"
        self._matrices = matrices
        self._tied_notes = [twice] if twice else []
        self.notes = self._tied_notes + _notes(matrices, self.coded)

    def forget_codes(self) -> None:
        """Read every matrix as floating-point weights, to be quantised again."""
        self.coded = frozenset()
        self.method = "GGUF"
        self.notes = self._tied_notes + _notes(self._matrices, self.coded)

    def write_assets(self, folder: Path) -> Path:
        """Write config, defaults and tokenizer as a model folder has them; the folder.

        Raises:
            CheckpointError: the tokenizer's fields do not fit each other.
            UnsupportedError: the tokenizer cannot be carried exactly.
            OutputError: a file could not be written.
        """
        folder.mkdir(exist_ok=True)
        files = tokenizer_files(self._file, self.config["vocab_size"]) | {
            "config.json": self.config,
            "generation_config.json": self.generation_config,
        }
        for name, content in files.items():
            write_durably(folder / name, json.dumps(content, ensure_ascii=False).encode())
        return folder

    def tensor(
        self, name: str, rows: tuple[int, int] | None = None, *, flat: bool = False
    ) -> npt.NDArray[np.float32]:
        """Read a tensor as `Checkpoint.tensor` does; quantised types are dequantised."""
        info = self.infos.get(name)
        if info is not None and flat and info.shape:
            info = replace(info, shape=(math.prod(info.shape[:-1]), info.shape[-1]))
        if info is None or (info.dtype in _PLAIN and self._order(name, info) is None):
            values = super().tensor(name, rows, flat=flat)
        else:
            codes = None if flat else self.codes(name)
            if codes is not None:
                values = codes.rows(slice(*(rows or (0, info.shape[0])))).dequantise()
            else:
                values = self._dequantise(name, info, rows)
            _require_finite(values, name, info)
        if self._add and name.endswith("norm.weight"):
            values = values + np.float32(self._add)
        return values

    def _read_codes(self, name: str) -> Quantised:
        info = self.infos[name]
        raw = self._raw(name, info, None)
        found = read_codes(info.dtype, raw.reshape(len(raw), -1, BLOCKS[info.dtype][1]))
        for values in (found.scales, found.offsets, found.super_scales):
            if values is not None and not np.isfinite(values).all():
                raise CheckpointError(
                    f"{info.path.name}: tensor {name!r} holds a scale that is not a number"
                )
        return found

    def _dequantise(
        self, name: str, info: TensorInfo, rows: tuple[int, int] | None
    ) -> npt.NDArray[np.float32]:
        import gguf

        raw = self._raw(name, info, rows)
        with np.errstate(over="ignore", invalid="ignore"):
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[info.dtype])
        return np.ascontiguousarray(values, np.float32).reshape(len(raw), *info.shape[1:])

    def _raw(
        self, name: str, info: TensorInfo, rows: tuple[int, int] | None
    ) -> npt.NDArray[np.uint8]:
        """Bytes of a matrix's rows, in transformers' order."""
        N = info.shape[0]
        first, end = rows or (0, N)
        order = self._order(name, info)
        if order is not None:
            raw = np.empty((N, info.nbytes // N), np.uint8)
            read_exactly(info.path, info.begin, raw.reshape(-1))
            return raw[order[first:end]]
        raw = np.empty((end - first, info.nbytes // N), np.uint8)
        read_exactly(info.path, info.begin + first * raw.shape[1], raw.reshape(-1))
        return raw

    def _order(self, name: str, info: TensorInfo) -> npt.NDArray[np.int64] | None:
        """Return the file's row of each row: llama.cpp stores a head's i and i + D/2 together."""
        heads = self._heads.get(name.split(".")[-2])
        if heads is None or info.shape[0] % (2 * heads):
            return None
        return np.arange(info.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _factors(self, name: str) -> npt.NDArray[np.float32]:
        info = self._file.infos[name]
        if info.dtype != "F32":
            raise CheckpointError(
                f"{info.path.name}: tensor {name!r} is {info.dtype}, expected F32"
            )
        values = np.empty(info.nbytes // 4, "<f4")
        read_exactly(info.path, info.begin, values.view(np.uint8))
        return values


def _require_finite(values: npt.NDArray[np.float32], name: str, info: TensorInfo) -> None:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{info.path.name}: tensor {name!r} holds a value that is not finite; the file is "
            "damaged, take another copy"
        )


def _notes(matrices: dict[str, TensorInfo], coded: frozenset[str]) -> list[str]:
    kept: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, info in matrices.items():
        if name in coded:
            kept[info.dtype] += 1
        elif info.dtype not in _PLAIN:
            others[info.dtype] += 1
    return [
        f"{kind}: {what} ({count} of {len(matrices)} matrices)"
        for what, counts in (("integers kept", kept), ("dequantised and quantised again", others))
        for kind, count in counts.items()
    ]
