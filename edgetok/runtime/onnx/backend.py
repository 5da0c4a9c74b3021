"""The onnxruntime backend: runs any artefact's graph, and is the oracle for the other backends.

Our own graphs write new keys and values into one buffer a layer, allocated with the cache and bound
as past and present at once. Graphs of other exporters return longer arrays at each step; where they
have no cache at all, every step computes the whole sequence again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgetok.cache.groups import check_cut
from edgetok.cache.protocol import KVCache
from edgetok.errors import ArtefactError, OptionError
from edgetok.formats import strict_json
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.foreign import foreign
from edgetok.formats.layout import LOGITS_START, GraphState, cache_head_dim, graph_states
from edgetok.models.operations import operations
from edgetok.models.ops import Store
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Capabilities, Logits, Part
from edgetok.runtime.base import BaseBackend, checked_parts
from edgetok.runtime.token_blocks import foreign_cache

_ORT_ERRORS: Final = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
_DTYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CONTEXT_KEYS: Final = ("max_position_embeddings", "n_positions", "seq_length", "n_ctx")
_FATAL: Final = 4
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"


class _Cache(KVCache):
    """Length and capacity; what a kind of cache adds is how it holds keys and values."""

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        if capacity_tokens < 1:
            raise OptionError(f"a cache of {capacity_tokens} tokens, expected at least 1")
        self._block = block_tokens
        self._capacity_tokens = capacity_tokens
        self._length_tokens = 0

    @property
    def block_tokens(self) -> int:
        """Most tokens that one step may append."""
        return self._block

    @property
    def length_tokens(self) -> int:
        """Tokens seen so far."""
        return self._length_tokens

    @property
    def capacity_tokens(self) -> int:
        """Return the most tokens that can be seen."""
        return self._capacity_tokens

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from a position on; windows lose nothing here, so always True."""
        check_cut(length_tokens, self._length_tokens)
        self._keep(length_tokens)
        self._length_tokens = length_tokens
        return True

    def clear(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self._length_tokens += tokens

    def _keep(self, length_tokens: int) -> None:
        """Drop keys and values beyond a length, where they are not simply overwritten."""


class SharedCache(_Cache):
    """One buffer for each layer's keys and one for its values, float32 [1, KH, capacity, D]."""

    def __init__(self, spec: DecoderSpec, capacity_tokens: int, block_tokens: int) -> None:
        super().__init__(capacity_tokens, block_tokens)
        shape = (1, spec.num_kv_heads, capacity_tokens, cache_head_dim(spec))
        self.values = {}
        layers = [op.layer for op in operations(spec) if isinstance(op, Store)]
        for i in layers:
            for kind in ("key", "value"):
                array = np.zeros(shape, np.float32)
                self.values[f"{i}.{kind}"] = ort.OrtValue.ortvalue_from_numpy(array)
        self._nbytes = 2 * len(layers) * int(np.prod(shape)) * 4
        self._states = graph_states(spec)
        self._nbytes += 2 * sum(4 * int(np.prod(state.shape)) for state in self._states)
        self.states: dict[GraphState, ort.OrtValue] = {}
        self._begin()

    def _begin(self) -> None:
        """Set the states to those before the first token."""
        for state in self._states:
            zeros = np.zeros((1, *state.shape), np.float32)
            self.states[state] = ort.OrtValue.ortvalue_from_numpy(zeros)

    def reachable(self, length_tokens: int) -> int:
        """Return the length itself; with states, which are of the last token alone, that or 0."""
        whole = not self._states or length_tokens == self._length_tokens
        return length_tokens if whole else 0

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from a position on, if it is reachable."""
        check_cut(length_tokens, self._length_tokens)
        if self.reachable(length_tokens) != length_tokens:
            return False
        if length_tokens == 0:
            self._begin()
        return super().truncate(length_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._nbytes


class GrowingCache(_Cache):
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


class OnnxRuntimeBackend(BaseBackend):
    """Runs an artefact's graph with onnxruntime on the CPU. See `Backend`."""

    name = "onnxruntime"

    def __init__(
        self,
        artefact: Artefact | str | os.PathLike[str],
        *,
        threads: int = 0,
        block_tokens: int = 256,
        exact: bool = False,
    ) -> None:
        """Load the graph.

        Args:
            artefact: an opened artefact, or its folder.
            threads: of onnxruntime's own team; 0 lets it choose.
            block_tokens: tokens computed at once in a prefill.
            exact: multiply in float32 where the graph allows activations of 8 bits; of our own
                graphs only.

        Raises:
            ArtefactError: the folder is damaged or onnxruntime refuses the graph.
            OptionError: a number is out of range.
        """
        if threads < 0 or block_tokens < 1:
            raise OptionError(f"{threads} threads and blocks of {block_tokens}: out of range")
        if not isinstance(artefact, Artefact):
            artefact = open_artefact(artefact)
        self._artefact = artefact
        self._capabilities = Capabilities(
            together=False,
            step_rows=block_tokens,
            evicts=False,
            samples=False,
            threads=threads or None,
        )
        self._lock = threading.Lock()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL  # what goes wrong is raised, not printed
        graph: str | bytes = os.fspath(artefact.graph_path)
        if exact and artefact.spec is not None:
            graph = _exact(os.fspath(artefact.graph_path))
            options.add_session_config_entry(_WEIGHTS_FOLDER, os.fspath(artefact.folder))
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise ArtefactError(
                f"{artefact.graph_path}: onnxruntime {ort.__version__} refuses the graph: {error}"
            ) from error
        self._graph: _OwnGraph | _ForeignGraph = (
            _ForeignGraph(artefact, self._session)
            if artefact.spec is None
            else _OwnGraph(artefact.spec)
        )

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities; see `Backend`."""
        return self._capabilities

    @property
    def spec(self) -> DecoderSpec | None:
        """The decoder's description; None where another exporter wrote the graph."""
        return self._artefact.spec

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._graph.vocab_size

    @property
    def context_tokens(self) -> int:
        """The trained context length."""
        return self._graph.context_tokens

    def new_cache(self, capacity_tokens: int) -> KVCache:
        """Allocate an empty cache, all its bytes at once where the graph is ours.

        Raises:
            OptionError: less than one token.
        """
        return self._graph.new_cache(capacity_tokens, self._capabilities.step_rows)

    def step(self, parts: Sequence[Part]) -> list[Logits]:
        """Append each part's tokens and compute the logits it asks for. See `Backend.step`.

        Raises:
            ContextError: a part's tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size; likewise.
            ShapeError: parts of a wrong size, or a cache of another backend.
        """
        found = []
        for part in checked_parts(parts, self.vocab_size, self._capabilities.step_rows):
            with self._lock:
                if self._session is None:
                    raise OptionError("this backend was closed; load the model again")
                ids, several = part.tokens.astype(np.int64), part.logits > 1
                with foreign(f"{self._artefact.graph_path}: onnxruntime", ArtefactError):
                    logits = self._graph.run(self._session, part.cache, ids, several)
                found.append(logits[len(logits) - part.logits :])
        return found

    def close(self) -> None:
        """Let go of the session and the mapping; a second call does nothing."""
        with self._lock:
            self._session = None
            self._artefact.close()


def _exact(path: str) -> bytes:
    """Return a graph of ours whose products may not round activations."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    content: bytes = graph.SerializeToString()
    return content


class _OwnGraph:
    """A graph of edgetok's converter."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self.vocab_size = spec.vocab_size
        self.context_tokens = spec.context_tokens

    def new_cache(self, capacity_tokens: int, block_tokens: int) -> SharedCache:
        return SharedCache(self._spec, capacity_tokens, block_tokens)

    def run(
        self,
        session: ort.InferenceSession,
        cache: KVCache,
        ids: npt.NDArray[np.int64],
        all_logits: bool,
    ) -> Logits:
        """Logits of one block: [T, V], or of the last token alone, [1, V]."""
        if not isinstance(cache, SharedCache):
            raise foreign_cache(cache)
        binding = session.io_binding()
        mask = np.ones((1, cache.length_tokens + ids.size), np.int64)
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", mask)
        start = np.array([0 if all_logits else -1], np.int64)
        # An input that may be left out is known to the session, but not to `bind_cpu_input`.
        binding.bind_ortvalue_input(LOGITS_START, ort.OrtValue.ortvalue_from_numpy(start))
        for name, value in cache.values.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        for state, value in cache.states.items():
            binding.bind_ortvalue_input(state.past, value)
            binding.bind_output(state.present, "cpu")
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        *found, last = binding.get_outputs()
        states = found[len(found) - len(cache.states) :]
        cache.states = dict(zip(cache.states, states, strict=True))
        logits: Logits = last.numpy()[0]
        cache.advance(ids.size)
        return logits


class _ForeignGraph:
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
