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
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.converter.durable import write_durably
from edgetok.converter.quantised import Quantised
from edgetok.converter.read.gguf_architectures import architecture_of
from edgetok.converter.read.gguf_codes import KINDS, read_codes
from edgetok.converter.read.gguf_config import FACTORS, config_of, token_ids
from edgetok.converter.read.gguf_tensors import (
    Undo,
    described,
    guessing_tensors,
    name_in_file,
    undo_of,
    with_axes,
)
from edgetok.converter.read.gguf_tied import tied_once
from edgetok.converter.read.gguf_tokenizer import tokenizer_files
from edgetok.converter.read.quantised_checkpoint import CodedCheckpoint
from edgetok.errors import CheckpointError, MissingExtraError
from edgetok.formats.gguf import BLOCKS, open_gguf
from edgetok.formats.safetensors_file import TensorInfo, read_exactly
from edgetok.models.family import Family
from edgetok.models.registry import read_family
from edgetok.models.tensors import tensor_shapes

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
        family = described(read_family(config), architecture, file.infos)
        wanted = {name for source in family.tensors.values() for name in source.names}
        wanted |= family.unused
        arch = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}[
            file.fields["general.architecture"]
        ]
        count = family.spec.num_layers
        names = gguf.get_tensor_name_map(arch, count).mapping
        modules = {name: stored for name, (_, stored) in names.items()}
        found = {name: name_in_file(name, modules, file.infos) for name in wanted}
        stored = {name: place for name, place in found.items() if place is not None}
        renamed = with_axes(family, {name: file.infos[place] for name, place in stored.items()})
        claimed = {*stored.values(), *FACTORS}
        claimed |= guessing_tensors(file, architecture, count)
        infos = renamed | {name: i for name, i in file.infos.items() if name not in claimed}
        super().__init__(path, config, token_ids(file, vocab_size), infos, file.fingerprint)
        self._architecture = architecture
        self._undo = {
            name: undo_of(place, architecture, family.spec) for name, place in stored.items()
        }
        shapes = tensor_shapes(family.spec)
        matrices = {
            name: renamed[name]
            for canonical, source in family.tensors.items()
            if len(shapes[canonical]) == 2
            for name in source.names
            if name in renamed
        }
        exact = [
            n for n, i in matrices.items() if i.dtype in KINDS and self._undo[n].keeps(i.dtype)
        ]
        layers = {n: math.prod(i.shape) for n, i in matrices.items() if stored[n][:4] == "blk."}
        if 2 * sum(layers.get(name, 0) for name in exact) < sum(layers.values()):
            exact = []
        self.coded = frozenset(exact)
        kinds = Counter(matrices[name].dtype for name in exact)
        self.method = f"GGUF {kinds.most_common(1)[0][0]}" if kinds else "GGUF"
        self._matrices = matrices
        self._tied_notes = [twice] if twice else []
        self.notes = self._tied_notes + _notes(matrices, self.coded)

    def described(self, family: Family) -> Family:
        """Return the family with the file's own tensors where transformers has larger ones."""
        return described(family, self._architecture, self._file.infos)

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
        """Read a tensor as `Checkpoint.tensor` does; quantised types are dequantised.

        Raises:
            CheckpointError: the file has no such tensor, or it holds what no model has.
        """
        info = self.infos.get(name)
        undo = self._undo.get(name, Undo())
        if info is None or (info.dtype in _PLAIN and not undo.moves):
            values = super().tensor(name, rows, flat=flat)
        else:
            each = math.prod(info.shape[1:-1]) if not flat else 1  # rows of a matrix
            count = math.prod(info.shape[:-1]) if len(info.shape) > 1 else info.shape[0]
            first, end = (0, count) if rows is None else (rows[0] * each, rows[1] * each)
            codes = self.codes(name)
            if codes is not None:
                values = codes.rows(slice(first, end)).dequantise()
            else:
                values = self._dequantise(info, undo, (first, end))
            _require_finite(values, name, info)
            if not flat:
                values = values.reshape((end - first) // each, *info.shape[1:])
        if undo.add:
            values = values + np.float32(undo.add)
        if undo.log:
            if not (values < 0).all():
                raise CheckpointError(
                    f"{self.folder.name}: tensor {name!r} holds a rate that is not below 0; the "
                    "file is damaged, take another copy"
                )
            values = np.log(-values)
        return values

    def _read_codes(self, name: str) -> Quantised:
        info, undo = self.infos[name], self._undo[name]
        raw = self._raw(info, None, (0, math.prod(info.shape[:-1])))
        weights, nbytes = BLOCKS[info.dtype]
        found = read_codes(info.dtype, raw.reshape(len(raw), -1, nbytes))
        for values in (found.scales, found.offsets, found.super_scales):
            if values is not None and not np.isfinite(values).all():
                raise CheckpointError(
                    f"{info.path.name}: tensor {name!r} holds a scale that is not a number"
                )
        return undo.move(found, weights)

    def _dequantise(
        self, info: TensorInfo, undo: Undo, rows: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        import gguf

        raw = self._raw(info, undo.rows, rows)
        with np.errstate(over="ignore", invalid="ignore"):
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[info.dtype])
        values = np.asarray(values, np.float32).reshape(len(raw), -1)
        if undo.columns is not None:
            values = values[:, undo.columns]
        return np.ascontiguousarray(values if len(info.shape) > 1 else values[:, 0])

    def _raw(
        self, info: TensorInfo, order: npt.NDArray[np.int64] | None, rows: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        """Bytes of a matrix's rows; with `order`, of those that it names."""
        first, end = rows
        N = math.prod(info.shape[:-1]) if len(info.shape) > 1 else info.shape[0]
        if order is not None:
            raw = np.empty((N, info.nbytes // N), np.uint8)
            read_exactly(info.path, info.begin, raw.reshape(-1))
            return raw[order[first:end]]
        raw = np.empty((end - first, info.nbytes // N), np.uint8)
        read_exactly(info.path, info.begin + first * raw.shape[1], raw.reshape(-1))
        return raw

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
