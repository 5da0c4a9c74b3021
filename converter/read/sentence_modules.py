"""Modules of sentence-transformers behind a model: pooling and matrices, as data of the spec.

`modules.json` lists the modules. Transformer is the model, Normalize is what `embed` does unless it
is told otherwise; the others have a folder with a `config.json`, Dense a `model.safetensors` too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetok.errors import UnsupportedError
from edgetok.formats import strict_json
from edgetok.formats.checkpoint import Checkpoint
from edgetok.formats.safetensors_file import TensorInfo, read_header
from edgetok.models.family import Family, TensorSource
from edgetok.models.registry import read_family
from edgetok.models.spec import Pooling

MODULES_FILE = "modules.json"
_FOLDER = re.compile(r"\d+_[A-Za-z]+", re.ASCII)
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "last": "last",
    "lasttoken": "last",
}
_WEIGHT = "linear.weight"


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """The modules behind a model.

    Attributes:
        pooling: pooling of tokens' vectors to one; None: not said.
        dense: the names that its matrices have among the checkpoint's tensors, in order.
        sizes: outputs of each.
    """

    pooling: Pooling | None
    dense: tuple[str, ...]
    sizes: tuple[int, ...]


class SentenceCheckpoint(Checkpoint):
    """A checkpoint with the matrices that stand behind its model.

    Attributes:
        modules: see `SentenceModules`.
    """

    def __init__(
        self,
        inner: Checkpoint,
        modules: SentenceModules,
        infos: dict[str, TensorInfo],
        fingerprint: str,
    ) -> None:
        """Add the matrices' `infos` to those of `inner`."""
        super().__init__(
            inner.folder,
            inner.config,
            inner.generation_config,
            {**inner.infos, **infos},
            fingerprint,
        )
        self.modules, self.notes = modules, inner.notes


def with_modules(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with what its `modules.json` names; itself where there is none.

    Modules that edgetok does not compute are left out, with a note, behind a model that writes
    text, too. One that computes vectors alone is nothing without them.

    Raises:
        CheckpointError: a file is missing, damaged or hostile.
        UnsupportedError: see above.
    """
    path = checkpoint.folder / MODULES_FILE
    if not path.exists():
        return checkpoint
    digest = hashlib.sha256(checkpoint.fingerprint.encode())
    try:
        modules, infos = _read(checkpoint.folder, digest)
    except UnsupportedError as error:
        if checkpoint.config.get("use_bidirectional_attention") is True:
            raise
        checkpoint.notes = (*checkpoint.notes, f"{error}: what {MODULES_FILE} names is left out")
        return checkpoint
    if modules == SentenceModules(None, (), ()):
        return checkpoint
    return SentenceCheckpoint(checkpoint, modules, infos, digest.hexdigest())


def read_described(checkpoint: Checkpoint) -> Family:
    """Return `read_family` of a checkpoint, with its modules.

    Raises: as `read_family`.
    """
    family = read_family(checkpoint.config, checkpoint.generation_config)
    if not isinstance(checkpoint, SentenceCheckpoint):
        return family
    modules, spec = checkpoint.modules, family.spec
    spec = dataclasses.replace(
        spec, pooling=modules.pooling or spec.pooling, vector_sizes=modules.sizes
    )
    sources = {
        f"vector_proj_{i}.weight": TensorSource(name) for i, name in enumerate(modules.dense)
    }
    return dataclasses.replace(family, spec=spec, tensors={**family.tensors, **sources})


def _read(folder: Path, digest: hashlib._Hash) -> tuple[SentenceModules, dict[str, TensorInfo]]:
    data = strict_json.read_bytes(folder / MODULES_FILE, max_bytes=strict_json.MAX_BYTES)
    digest.update(data)
    listed: Any = strict_json.loads(data, MODULES_FILE)
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise UnsupportedError(f"{MODULES_FILE}: expected a list of modules")
    pooling: Pooling | None = None
    infos: dict[str, TensorInfo] = {}
    sizes: list[int] = []
    for item in listed:
        kind = str(item.get("type")).rpartition(".")[2]
        if kind in ("Transformer", "Normalize"):
            continue
        name = str(item.get("path"))
        if kind not in ("Pooling", "Dense") or not _FOLDER.fullmatch(name):
            raise UnsupportedError(
                f"{MODULES_FILE}: module {kind!r:.80} in {name!r:.80}, edgetok computes "
                "Transformer, Pooling, Dense and Normalize, each in a folder such as 1_Pooling"
            )
        config = strict_json.read_object(folder / name / "config.json")
        digest.update(repr(sorted(config.items())).encode())
        if kind == "Pooling":
            if sizes:
                raise UnsupportedError(f"{MODULES_FILE}: {name} follows a Dense, expected before")
            pooling = _pooling(config, f"{name}/config.json")
            continue
        stored = f"{name}.{_WEIGHT}"
        infos[stored], size = _dense(folder / name, config, digest)
        sizes.append(size)
    return SentenceModules(pooling, tuple(infos), tuple(sizes)), infos


def _pooling(config: dict[str, Any], where: str) -> Pooling:
    """Return the pooling of a 1_Pooling/config.json: by its name, or by one flag of several."""
    begin = "pooling_mode_"
    flags = [key.removeprefix(begin) for key in config if key.startswith(begin) and config[key]]
    chosen = [config["pooling_mode"]] if "pooling_mode" in config else flags
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise UnsupportedError(
            f"{where}: pooling is {', '.join(map(str, chosen)) or 'none':.80}, edgetok computes "
            "mean_tokens or lasttoken"
        )
    return _POOLINGS[chosen[0]]


def _dense(folder: Path, config: dict[str, Any], digest: hashlib._Hash) -> tuple[TensorInfo, int]:
    """Return a matrix without bias and activation, and how many outputs it has."""
    where = f"{folder.name}/config.json"
    activation = str(config.get("activation_function")).rpartition(".")[2]
    if activation != "Identity" or config.get("bias") is not False:
        raise UnsupportedError(
            f"{where}: activation {activation:.80}, bias {config.get('bias')!r:.20}; edgetok "
            "computes Identity without bias"
        )
    infos = read_header(folder / "model.safetensors", digest)
    size = config.get("out_features")
    if set(infos) != {_WEIGHT} or type(size) is not int:
        raise UnsupportedError(
            f"{folder.name}: tensors {', '.join(sorted(infos)):.80}, {size!r:.20} outputs; "
            f"expected {_WEIGHT} and their number"
        )
    return infos[_WEIGHT], size
