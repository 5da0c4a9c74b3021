"""Graphs of edgetok's converter: a buffer a layer, past and present at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgetok.cache.groups import check_cut
from edgetok.cache.protocol import KVCache
from edgetok.formats.layout import LOGITS_START, GraphState, cache_head_dim, graph_states
from edgetok.models.operations import operations
from edgetok.models.ops import Store
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Logits
from edgetok.runtime.onnx.cache import OnnxCache
from edgetok.runtime.token_blocks import foreign_cache


class SharedCache(OnnxCache):
    """One buffer for each layer's keys and one for its values, float32 [1, KH, capacity, D]."""

    def __init__(self, spec: DecoderSpec, capacity_tokens: int, block_tokens: int) -> None:
        super().__init__(capacity_tokens, block_tokens)
        self.values = {}
        self._nbytes = 0
        for op in (op for op in operations(spec) if isinstance(op, Store)):
            for kind in ("key", "value"):
                shape = (1, op.heads, capacity_tokens, cache_head_dim(op.head_dim))
                array = np.zeros(shape, np.float32)
                self.values[f"{op.layer}.{kind}"] = ort.OrtValue.ortvalue_from_numpy(array)
                self._nbytes += array.nbytes
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


class OwnGraph:
    """A graph of edgetok's converter."""

    def __init__(self, spec: DecoderSpec) -> None:
        self._spec = spec
        self.vocab_size = spec.vocab_size
        self.context_tokens = spec.context_tokens

    def new_cache(self, capacity_tokens: int, block_tokens: int) -> SharedCache:
        """An empty cache; see `Backend.new_cache`."""
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
