"""A plan in this process: its segments in memory, its addresses real."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError
from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import DATA_FILE, EMBEDDINGS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.memory import aligned_bytes
from edgetok.models.operations import expert_counts, operations
from edgetok.runtime.cpu.arenas import BY_THREAD, Segment, bound
from edgetok.runtime.cpu.lowering.linears import stored_weight
from edgetok.runtime.cpu.plan import Plan

Array = npt.NDArray[np.float32]


class BoundPlan:
    """Buffers of a plan and its instructions on them. One run at a time.

    Attributes:
        plan: the plan.
        tokens: int32 [block_tokens], to be filled before a run.
        positions: int32 [block_tokens], likewise.
        cos: cosines of each rope, float32 [block_tokens, rotary_dim / 2], likewise.
        sin: likewise.
        x: float32 [block_tokens, hidden]: the residual stream, the body's result.
        logits: float32 [head_tokens, vocab_size] of the rows that went on to the head.
        step: the body and the head.
        body: instructions from tokens to x, where only rows that go on (CTX_TAIL) are left.
        head: instructions from rows of x that go on (CTX_HEAD) to `logits`.
        trunk: the beginning of the body, until all that a run leaves in the cache is there.
    """

    def __init__(self, plan: Plan, artefact: Artefact, kernels: Kernels, threads: int) -> None:
        """Allocate memory and fill in addresses.

        Args:
            plan: made for this artefact, here or elsewhere.
            artefact: whose weights are mapped.
            kernels: kernels of any instruction set.
            threads: most that will run it.

        Raises:
            ArtefactError: the plan was made for other weights.
            EdgetokError: there is no such kernel.
        """
        found = artefact.manifest.files[DATA_FILE].sha256
        if plan.weights != found or plan.sizes[Segment.WEIGHTS] != artefact.mapped_bytes:
            raise ArtefactError(
                f"{artefact.folder}: {DATA_FILE} has sha256 {found:.12}..., the plan was made for "
                f"{plan.weights:.12}...; make the plan again"
            )
        self.plan = plan
        self.kernels = kernels
        self._artefact = artefact
        self._memory = {
            segment: aligned_bytes(plan.sizes[segment] * (threads if segment in BY_THREAD else 1))
            for segment in (Segment.TABLES, Segment.WORKSPACE, *BY_THREAD)
        }
        bases = {segment: int(memory.ctypes.data) for segment, memory in self._memory.items()}
        bases[Segment.WEIGHTS] = artefact.base_address
        addresses = np.array([kernels.address(name) for name in plan.kernels], np.int64)
        self.step = bound(plan.table, bases, addresses)
        self.body, self.head = self.step[: plan.body], self.step[plan.body :]
        self.trunk = self.step[: plan.trunk]
        self.tokens = self.array("tokens")[0].view(np.int32)
        self.positions = self.array("positions")[0].view(np.int32)
        ropes = range(len(plan.spec.ropes))
        self.cos = [self.array(f"cos.{i}") for i in ropes]
        self.sin = [self.array(f"sin.{i}") for i in ropes]
        self.x, self.logits = self.array("x"), self.array("logits")

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(memory.nbytes for memory in self._memory.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads; of tables, the token's rows."""
        total = 0
        stacked = expert_counts(operations(self.plan.spec))
        for name in self._artefact.shapes:
            experts, read = stacked.get(name, (1, 1))
            total += self.weight_bytes(name) // experts * read
        for name in set(EMBEDDINGS) & set(self._artefact.shapes):
            table = stored_weight(self._artefact, name, int)
            total -= table.read_bytes - table.read_bytes // table.N
        return total

    def weight_bytes(self, name: str) -> int:
        """Bytes of weights that one product of a linear layer reads."""
        return stored_weight(self._artefact, name, int).read_bytes

    def array(self, name: str) -> Array:
        """One of the plan's `places`, in memory."""
        place = self.plan.places[name]
        return cast("Array", place.view(self._memory[place.segment]))
