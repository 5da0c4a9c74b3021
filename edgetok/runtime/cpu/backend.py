"""The CPU backend: edgetok's own kernels, executing weights in place from the mapped file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.cache.key_constants import key_constants
from edgetok.cache.limits import CacheLimits
from edgetok.errors import ArtefactError, ContextError, EdgetokError
from edgetok.formats.artefact import Artefact
from edgetok.formats.head_scores import head_scores
from edgetok.kernels_cpu.elementwise.launch_angles import Angles
from edgetok.kernels_cpu.program.abi import PART_MASS_SLOTS
from edgetok.kernels_cpu.program.compiling import Progress
from edgetok.kernels_cpu.program.tables import Table, phases
from edgetok.kernels_cpu.sampling.launch import Chooser
from edgetok.machine import memory_bytes
from edgetok.models.operations import operations, stateful
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Capabilities, Logits, Part, Tokens
from edgetok.runtime.base import SpecBackend, check_writes, with_spec
from edgetok.runtime.cpu.bound_plan import BoundPlan
from edgetok.runtime.cpu.cache_memory import (
    KIND,
    CacheStore,
    CpuCache,
    bounds_of,
    new_cache,
    planned_bytes,
)
from edgetok.runtime.cpu.kernel_set import KernelSet
from edgetok.runtime.cpu.plan import Compute, Plan, PlanOptions, make_plan
from edgetok.runtime.cpu.requirements import (
    check_groups,
    check_options,
    useful_threads,
)
from edgetok.runtime.cpu.step_tables import Share, StepTables
from edgetok.runtime.cpu.team import Program, Team
from edgetok.runtime.cpu.text_vectors import check_text, normed_sum, projected
from edgetok.runtime.token_blocks import blocks, checked_tokens
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import TokenChooser

# Tokens computed at once in a prefill: enough to reuse an unpacked tile of weights many times, few
# enough that buffers stay small and a cancelled prefill stops soon.
BLOCK_TOKENS = 256
_HEAD_TOKENS = 32
# Share of the machine's memory up to which weights are read in pages of 2 MB: of more, some are
# read again and again, and of experts more than is needed.
_MOST_IN_HUGE_PAGES = 0.5
_MOST_BLOCK_TOKENS = 4096


def block_tokens_of(spec: DecoderSpec, block_tokens: int = BLOCK_TOKENS) -> int:
    """Return the tokens computed at once: a whole text's where tokens see both sides."""
    if not spec.both_sides:
        return block_tokens
    return max(block_tokens, min(spec.context_tokens, _MOST_BLOCK_TOKENS))


def plan_options(kv_bits: int, compute: Compute, block_tokens: int) -> PlanOptions:
    """Return the options of a plan with blocks of so many tokens."""
    return PlanOptions(
        kv_bits=kv_bits,
        compute=compute,
        block_tokens=block_tokens,
        head_tokens=min(_HEAD_TOKENS, block_tokens),
    )


class CpuBackend(SpecBackend):
    """Computes logits with compiled kernels on a team of threads. See `Backend`.

    Attributes:
        store: the memory of all its caches; its pool may be given a limit.
        note: lines for the user where this machine runs no kernels but the portable ones, or
            shipped kernels could not be taken.
    """

    name = "cpu"
    _cache_kind = KIND

    def __init__(
        self,
        artefact: Artefact | str | os.PathLike[str],
        *,
        threads: int | None = None,
        isa: str | None = None,
        kv_bits: int = 8,
        compute: Compute = "int8",
        cache_dir: Path | None = None,
        kernels_dir: Path | None = None,
        block_tokens: int = BLOCK_TOKENS,
        plan: Plan | None = None,
        progress: Progress | None = None,
        releases: bool = False,
    ) -> None:
        """Load kernels (compiling them the first time on a machine) and plan the decoder.

        Args:
            artefact: an opened artefact, or its folder.
            threads: how many compute; None for one per core, or one where a model is too small to
                gain from two.
            isa: restricts the kernels to one instruction set; None takes the best.
            kv_bits: 4, 5, 8, 16 or 32 for each key and value of the cache.
            compute: "int8" activations in quantised products, or "float32" to compare with.
            cache_dir: where compiled kernels are kept; None for the user's cache folder.
            kernels_dir: shipped kernels; None for what the environment says.
            block_tokens: tokens computed at once in a prefill; more where tokens see both sides.
            plan: made before; it says `kv_bits`, `compute` and `block_tokens`. None makes one.
            progress: called as (work done, work in all) while kernels are compiled.
            releases: let go of weights as soon as they were used, so that no more than a few
                matrices are in memory. Slower, for runs over many tokens at once.

        Raises:
            ArtefactError: the folder is damaged or has no spec.
            OptionError: an option is out of range.
            OutputError: the cache folder cannot be used.
            UnsupportedError: weights in groups that no kernel takes.
        """
        artefact, spec = with_spec(artefact)
        if plan is not None:
            made = plan.options
            kv_bits, compute, block_tokens = made.kv_bits, made.compute, made.block_tokens
        else:
            block_tokens = block_tokens_of(spec, block_tokens)
        check_options(threads, kv_bits, compute, block_tokens)
        check_groups(artefact)
        self._spec = spec
        self._artefact = artefact
        self._kv_bits = kv_bits
        self._block_tokens = block_tokens
        self._closed = False
        self._kernel_set = KernelSet(
            artefact,
            isa=isa,
            kv_bits=kv_bits,
            compute=compute,
            cache_dir=cache_dir,
            kernels_dir=kernels_dir,
            progress=progress,
        )
        kernels, self.note = self._kernel_set.kernels, self._kernel_set.note
        threads = threads or useful_threads(artefact)
        self._capabilities = Capabilities(
            together=True,
            step_rows=block_tokens,
            evicts=True,
            samples=False,
            same_bits=True,
            threads=threads,
            snapshots=bool(stateful(operations(self._spec))),
        )
        if plan is None:
            options = plan_options(kv_bits, compute, block_tokens)
            plan = make_plan(self._spec, artefact, options)
        if plan.spec != self._spec:
            raise ArtefactError(f"{artefact.folder}: a plan for another decoder; make it again")
        if not releases and artefact.mapped_bytes < memory_bytes() * _MOST_IN_HUGE_PAGES:
            artefact.prefer_huge_pages()
        self._plan = BoundPlan(plan, artefact, kernels, threads)
        self._kernels = kernels
        bound = self._plan
        self._angles = [
            Angles(kernels, bound.positions, cos, sin, rope.attention_factor)
            for rope, cos, sin in zip(self._spec.ropes, bound.cos, bound.sin, strict=True)
        ]
        self._team = Team(kernels, threads)
        self.store = CacheStore(threads, constants=key_constants(artefact, spec))
        self._head_scores = head_scores(artefact.report, spec)
        self._tables = StepTables(self._spec, threads=threads, rows=block_tokens)
        self._releases = releases
        self._trunk, self._body = self._programs(bound.trunk), self._programs(bound.body)
        self._step, self._head = self._programs(bound.step), self._programs(bound.head)

    @property
    def spec(self) -> DecoderSpec:
        """The decoder's description."""
        return self._spec

    @property
    def kv_bits(self) -> int:
        """Bits of each key and value of its caches."""
        return self._kv_bits

    @property
    def plan(self) -> Plan:
        """The instructions as data, for a file (`plan_file.write_plan`) or another backend."""
        return self._plan.plan

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities; see `Backend`."""
        return self._capabilities

    @property
    def threads(self) -> int:
        """Return the number of threads."""
        return self._team.threads

    @property
    def isa(self) -> str:
        """Name of the instruction set in use."""
        return self._kernels.isa.name

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers, without caches and mapped weights."""
        return self._plan.nbytes + self._tables.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads."""
        return self._plan.bytes_per_token

    def chooser(self, options: SamplingOptions) -> TokenChooser:
        """A compiled kernel that chooses tokens. See `Backend.chooser`."""
        return Chooser(
            self._kernels,
            self.vocab_size,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
        )

    def new_bounded_cache(self, context_tokens: int, limits: CacheLimits) -> CpuCache:
        """Allocate an empty cache for a conversation of any length. See `Backend`.

        The first one loads the kernels that evict, compiling them the first time on a machine.
        """
        bounds = bounds_of(
            self._spec,
            limits,
            context_tokens,
            kv_bits=self._kv_bits,
            block_tokens=self._block_tokens,
            threads=self.threads,
            scores=self._head_scores,
        )
        self.store.evictor = self._kernel_set.evictor(self._team)
        return new_cache(
            self._spec,
            self.store,
            capacity_tokens=self._spec.context_tokens,
            kv_bits=self._kv_bits,
            block_tokens=bounds.block_tokens,
            bounds=bounds,
        )

    def cache_bytes(self, context_tokens: int, limits: CacheLimits | None = None) -> int:
        """Compute the bytes of a full cache without making it. See `Backend.cache_bytes`."""
        return planned_bytes(
            self._spec,
            context_tokens,
            limits,
            kv_bits=self._kv_bits,
            block_tokens=self._block_tokens,
            threads=self.threads,
            scores=self._head_scores,
        )

    def new_cache(self, capacity_tokens: int) -> CpuCache:
        """Make an empty cache; its pages are allocated as tokens come.

        Raises:
            OptionError: less than one token, or more than can be addressed.
        """
        return new_cache(
            self._spec,
            self.store,
            capacity_tokens=capacity_tokens,
            kv_bits=self._kv_bits,
            block_tokens=self._block_tokens,
        )

    def step(self, parts: Sequence[Part]) -> list[Logits]:
        """Append each part's tokens and compute the logits it asks for. See `Backend.step`.

        One row of logits belongs to the cache and is overwritten by its next step; several are new.

        Raises:
            ArtefactError: the weight file was changed since it was opened.
            ContextError: a part's tokens do not fit; nothing was changed.
            OptionError: a token id is not below the vocabulary's size; likewise.
            ShapeError: parts of a wrong size, or a cache of another backend; likewise.
            UnsupportedError: the model computes vectors of texts alone.
        """
        check_writes(self._spec)
        checked = self._checked(parts)
        if not checked:
            return []
        rows = [(cache, part.tokens) for part, cache in checked]
        wanted = [part.logits for part, _ in checked]
        with self._team.turn, self._artefact.unchanged():
            # What attention gives to a slot is counted for every row, wanted or not.
            tails = [
                ids.size if cache.memory.part[PART_MASS_SLOTS] else count
                for (cache, ids), count in zip(rows, wanted, strict=True)
            ]
            for cache, ids in rows:
                cache.reserve(ids.size)
            try:
                self._begin(rows, tails, wanted)
            except ContextError:  # no memory for a copy of what is shared: others had begun
                for cache, _ in rows:
                    cache.truncate(cache.length_tokens)
                raise
            found = self._run([cache for cache, _ in rows], wanted)
            for cache, ids in rows:
                cache.advance(ids.size)
        return found

    def hidden(self, cache: CpuCache, ids: Tokens) -> npt.NDArray[np.float32]:
        """Append a block of checked tokens; what the last layer leaves of them, without logits.

        Returns:
            [T, hidden_size], overwritten by the next call.
        """
        with self._team.turn:
            return self._hidden(cache, ids)

    def embed(self, tokens: Tokens, *, mean: bool = False) -> npt.NDArray[np.float32]:
        """Compute a vector for a whole text. See `Backend.embed`."""
        spec, artefact = self._spec, self._artefact
        check_text(spec, len(tokens), self._block_tokens)
        cache = self.new_cache(max(1, len(tokens)))
        ids = checked_tokens(tokens, cache, self.vocab_size)
        total = np.zeros(spec.hidden_size, np.float32)
        for _, chunk, last in blocks(ids, min(cache.block_tokens, self._block_tokens), None):
            with self._team.turn:
                cache.reserve(chunk.size)
                rows = self._hidden(cache, chunk)
                if mean or last:
                    total += normed_sum(artefact, spec, rows if mean else rows[-1:])
        return projected(artefact, spec, total / np.float32(ids.size if mean else 1))

    def _hidden(self, cache: CpuCache, ids: Tokens) -> npt.NDArray[np.float32]:
        """Return `hidden` for who has the team's turn."""
        with self._artefact.unchanged():
            self._begin([(cache, ids)], [ids.size], [0])
            self._compute(self._body)
        cache.advance(ids.size)
        return self._plan.x[: ids.size]

    def close(self) -> None:
        """Stop threads and release the mapping. A second call does nothing."""
        with self._team.turn:
            self._closed = True
            self._team.close()
            self._artefact.close()

    def _begin(
        self,
        parts: Sequence[tuple[CpuCache, Tokens]],
        tails: Sequence[int],
        wanted: Sequence[int],
    ) -> None:
        """Fill everything that a step reads: tokens, positions, rotations, slots, tables.

        Args:
            parts: caches and what is appended to them.
            tails: how many of each one's last rows go on beyond the last layer's keys and values.
            wanted: how many of them go on to the head.
        """
        if self._closed:
            raise EdgetokError("this backend was closed; load the model again")
        plan, shares, end = self._plan, [], 0
        for (cache, ids), tail, logits in zip(parts, tails, wanted, strict=True):
            first, begin, end = cache.begin(ids.size), end, end + ids.size
            plan.tokens[begin:end] = ids
            plan.positions[begin:end] = np.arange(first, first + ids.size)
            for rope, angles in enumerate(self._angles):
                angles.fill(begin, end, cache.frequencies[rope])
            used = cache.used_slots
            shares.append(
                Share(part=cache.memory.part, used=used, rows=ids.size, tail=tail, logits=logits)
            )
        self._tables.fill(shares)

    def _run(self, caches: Sequence[CpuCache], wanted: Sequence[int]) -> list[Logits]:
        """Compute the step that the tables describe; the logits of each part."""
        tables, logits = self._tables, self._plan.logits
        rows = tables.head_rows
        ends = list(itertools.accumulate(wanted))
        if rows > len(logits):
            self._compute(self._body)
            every = np.empty((rows, self.vocab_size), np.float32)
            for start in range(0, rows, len(logits)):
                count = min(len(logits), rows - start)
                tables.choose_head(start, count)
                self._compute(self._head)
                every[start : start + count] = logits[:count]
            return np.split(every, ends[:-1])
        if rows:
            self._compute(self._step)
        else:
            self._compute(self._body if tables.tail_rows else self._trunk)
        found: list[Logits] = []
        for cache, count, end in zip(caches, wanted, ends, strict=True):
            if count == 1:
                np.copyto(cache.logits, logits[end - 1])
                found.append(cache.logits[None])
            else:
                found.append(logits[end - count : end].copy())
        return found

    def _programs(self, instructions: Table) -> list[Program]:
        """All instructions at once, or phase by phase where weights are let go of in between."""
        return [
            Program(part) for part in (phases(instructions) if self._releases else [instructions])
        ]

    def _compute(self, programs: Sequence[Program]) -> None:
        for program in programs:
            self._team.run(program, self._tables.ctx_address)
            if self._releases:
                self._artefact.release()
