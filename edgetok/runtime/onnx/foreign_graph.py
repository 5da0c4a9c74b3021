"""Graphs of other exporters: longer arrays at each step, or no cache at all."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgetok.cache.protocol import KVCache
from edgetok.errors import ArtefactError
from edgetok.formats import strict_json
from edgetok.formats.artefact import Artefact
from edgetok.runtime.backend import Logits
from edgetok.runtime.onnx.cache import OnnxCache
from edgetok.runtime.token_blocks import foreign_cache

_DTYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "seq_length", "n_ctx")


class GrowingCache(OnnxCache):
    """Keys and values as another exporter's graph returns them, a new array at each step."""

    def __init__(
        self,
        empty: dict[str, npt.NDArray[Any]],
        axis: int,
        capacity_tokens: int,
        block_tokens: int,
    ) -> None:
        super().__init__(capacity_tokens, block_tokens)
        self.arrays = empty
        self.tokens: list[int] = []
        self._axis = axis

    @property
    def nbytes(self) -> int:
        """Bytes in use; they grow with the sequence."""
        return sum(array.nbytes for array in self.arrays.values()) + 8 * len(self.tokens)

    def _keep(self, length_tokens: int) -> None:
        kept = (slice(None),) * self._axis + (slice(0, length_tokens),)
        self.arrays = {n: np.ascontiguousarray(a[kept]) for n, a in self.arrays.items()}
        del self.tokens[length_tokens:]


class ForeignGraph:
    """A graph as optimum exports it: the names of its inputs say what each of them is."""

    def __init__(self, artefact: Artefact, session: ort.InferenceSession) -> None:
        self._path = artefact.graph_path
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._past = [name for name in self._inputs if name.startswith("past_key_values")]
        known = {"input_ids", "attention_mask", "position_ids", *self._past}
        unknown = sorted(set(self._inputs) - known)
        outputs = {value.name: value for value in session.get_outputs()}
        if unknown or "input_ids" not in self._inputs or "logits" not in outputs:
            raise ArtefactError(
                f"{self._path}: inputs {list(self._inputs)[:4]} and outputs {list(outputs)[:2]} "
                "are not those of a causal language model; export it with --task text-generation"
            )
        self._present = {name: name.replace("past_key_values", "present") for name in self._past}
        missing = sorted(set(self._present.values()) - set(outputs))
        if missing:
            raise ArtefactError(f"{self._path}: output {missing[0]!r} is missing")
        self._axis = self._token_axis()
        config = _config(artefact)
        size = outputs["logits"].shape[-1]
        self.vocab_size = size if isinstance(size, int) else _integer(config, ("vocab_size",))
        self.context_tokens = _integer(config, _CONTEXT_KEYS)

    def new_cache(self, capacity_tokens: int, block_tokens: int) -> GrowingCache:
        """An empty cache; see `Backend.new_cache`."""
        empty = {}
        for name in self._past:
            value = self._inputs[name]
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            shape[self._axis] = 0
            if value.type not in _DTYPES:
                raise ArtefactError(f"{self._path}: {name} is {value.type}, expected floats")
            empty[name] = np.zeros(shape, _DTYPES[value.type])
        return GrowingCache(empty, self._axis, capacity_tokens, block_tokens)

    def run(
        self,
        session: ort.InferenceSession,
        cache: KVCache,
        ids: npt.NDArray[np.int64],
        all_logits: bool,
    ) -> Logits:
        """Logits [T, V] of one block; these graphs know no other."""
        if not isinstance(cache, GrowingCache):
            raise foreign_cache(cache)
        total = cache.length_tokens + ids.size
        if not self._past:  # without a cache everything is computed again
            ids = np.concatenate([np.array(cache.tokens, np.int64), ids])
        feed: dict[str, npt.NDArray[Any]] = {"input_ids": ids[None]}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones((1, total), np.int64)
        if "position_ids" in self._inputs:
            feed["position_ids"] = np.arange(total - ids.size, total)[None]
        names = ["logits", *self._present.values()]
        results = session.run(names, feed | cache.arrays)
        new_tokens = total - cache.length_tokens
        logits: Logits = results[0][0, -new_tokens:].astype(np.float32, copy=False)
        cache.arrays = dict(zip(self._present, results[1:], strict=True))
        cache.tokens += [int(i) for i in ids[-new_tokens:]]
        cache.advance(new_tokens)
        return logits

    def _token_axis(self) -> int:
        """The axis of the cache along which tokens lie: the symbolic one that is not the batch."""
        axes = set()
        for name in self._past:
            shape = self._inputs[name].shape
            symbolic = [i for i, size in enumerate(shape) if not isinstance(size, int)]
            if len(symbolic) > 2 or not symbolic or symbolic[-1] == 0:
                raise ArtefactError(f"{self._path}: {name} is {shape}, which axis is not clear")
            axes.add(symbolic[-1])
        if len(axes) > 1:
            raise ArtefactError(f"{self._path}: caches have tokens along different axes")
        return axes.pop() if axes else 2


def _config(artefact: Artefact) -> dict[str, Any]:
    path = artefact.folder / "config.json"
    if path.name not in artefact.manifest.files:
        raise ArtefactError(f"{artefact.folder}: no config.json; convert the model again")
    return strict_json.read_object(path, error=ArtefactError)


def _integer(config: dict[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        value = config.get(key)
        if type(value) is int and 0 < value < 1 << 28:
            return value
    raise ArtefactError(f"config.json: none of {', '.join(keys)} is a positive whole number")
