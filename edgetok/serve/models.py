"""The models that a server has by name: loaded when they are asked for, unloaded when idle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from edgetok.cache.prefix_cache import PrefixCache
from edgetok.drafting import draft_bytes
from edgetok.errors import OptionError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.manifest import MANIFEST_FILE
from edgetok.model import Model
from edgetok.runtime.options import RunChanges, RunOptions
from edgetok.serve.budget import MemoryBudget
from edgetok.serve.failure import Refusal, log

_CHUNK_S = 0.4  # of a prompt between two looks whether its client is still there
_PREFIX_SHARE = 8  # of the budget: one in so many bytes is for beginnings of prompts
_PREFIX_BYTES = 256 << 20  # and no more than so many


@dataclass(slots=True, kw_only=True)
class Served:
    """One model by its name.

    Attributes:
        name: that clients use.
        path: path of the artefact.
        created: time of the artefact, in seconds since 1970.
        identity: hash of the artefact's contents.
        weight_bytes: bytes of the file that is mapped.
        model: while it is loaded.
        loaded_bytes: that it takes while it is loaded.
        users: requests that use it now, or wait until it is loaded.
        holders: how many of them have the loaded model.
        free: set while there are none of these.
        used_s: when the last of them ended, on the monotonic clock.
        broken: whether its files were changed under it: nobody gets it any more, and once nobody
            has it, it is loaded again.
    """

    name: str
    path: Path
    created: int
    identity: str
    weight_bytes: int
    model: Model | None = None
    loaded_bytes: int = 0
    users: int = 0
    holders: int = 0
    free: asyncio.Event = field(default_factory=asyncio.Event)
    used_s: float = 0.0
    broken: bool = False

    @property
    def prefixes_too_large(self) -> int:
        """Return how many prompts the prefix cache could not take since the model was loaded."""
        prefixes = None if self.model is None else self.model.engine.prefixes
        return 0 if prefixes is None else prefixes.too_large

    @property
    def prefixes_unwritten(self) -> int:
        """Return how many files of the prefix cache could not be written since then."""
        prefixes = None if self.model is None else self.model.engine.prefixes
        return 0 if prefixes is None else prefixes.unwritten

    @classmethod
    def look(cls, name: str, path: Path) -> Served:
        """Look at an artefact without loading it.

        Raises:
            ArtefactError: the folder is damaged or no artefact.
        """
        with open_artefact(path) as artefact:
            return cls(
                name=name,
                path=path,
                created=int((path / MANIFEST_FILE).stat().st_mtime),
                identity=artefact.identity,
                weight_bytes=artefact.weight_bytes,
            )


class ModelPool:
    """All models of a server. Used by one event loop; loading happens in a thread.

    Attributes:
        budget: memory budget.
        models: by name.
        draft_bytes: bytes of the weights of the model that drafts for each of them.
    """

    def __init__(
        self,
        places: Iterable[tuple[str, Path]],
        budget: MemoryBudget,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Unpack[RunChanges],
    ) -> None:
        """Look at the artefacts; none is loaded yet.

        Args:
            places: names and folders.
            budget: memory budget.
            progress: see `Model.load`.
            options: options of `Model.load`, for all models.

        Raises:
            ArtefactError: a folder is damaged or no artefact.
            OptionError: two models have one name.
        """
        self.budget, self._options, self._progress = budget, options, progress
        draft = RunOptions.of(options).draft
        self.draft_bytes = 0 if draft is None else draft_bytes(draft)
        self._lock = asyncio.Lock()
        self._loading: set[asyncio.Task[Model]] = set()
        self.models: dict[str, Served] = {}
        for name, path in places:
            if name in self.models:
                raise OptionError(
                    f"two models are called {name}; give one of them another name, as in "
                    f"other={path}"
                )
            self.models[name] = Served.look(name, path)

    def check_fits(self) -> None:
        """Refuse models that the budget could not hold even alone.

        Raises:
            OptionError: names the first one.
        """
        for served in self.models.values():
            wanted = self._wanted_bytes(served)
            if wanted >= self.budget.total_bytes:
                raise OptionError(
                    f"a memory budget of {self.budget.total_bytes:,} bytes; {served.name} needs "
                    f"{wanted:,} before its first answer, {self.prefix_bytes:,} of them for "
                    "beginnings of prompts; give a larger --memory, or a smaller --prefix-cache"
                )

    def find(self, name: str) -> Served:
        """Return the model of a name.

        Raises:
            Refusal: there is none.
        """
        if name not in self.models:
            raise Refusal(
                404,
                f"the model {name!r:.100} does not exist; this server has {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[tuple[Served, Model]]:
        """Load a model, if it is not, and keep it loaded inside the block.

        Raises:
            Refusal: there is no model of this name, or no memory for it.
            ArtefactError: its files are damaged.
        """
        served = self.find(name)
        served.users += 1  # before anything is awaited, so that nobody unloads it
        try:
            model = await self._loaded(served)
            served.holders += 1
            served.free.clear()
            try:
                yield served, model
            finally:
                served.holders -= 1
                if not served.holders:
                    served.free.set()
        finally:
            served.users -= 1
            served.used_s = time.monotonic()

    async def make_way(self, nbytes: int) -> None:
        """Unload idle models, those used longest ago first, until caches of this size may fit."""
        if nbytes > self.budget.most_cache_bytes:
            async with self._lock:
                await self._unload_until(lambda: self.budget.most_cache_bytes >= nbytes)

    async def unload_idle(self, idle_s: float) -> None:
        """Unload what was not used for `idle_s` seconds."""
        async with self._lock:
            for served in self.models.values():
                if not served.users and time.monotonic() - served.used_s >= idle_s:
                    await self._unload(served)

    async def close(self) -> None:
        """Unload all; answers end."""
        for served in self.models.values():
            await self._unload(served)

    @property
    def prefix_bytes(self) -> int:
        """Return the limit of each model's beginnings of prompts."""
        asked = RunOptions.of(self._options).prefix_cache_bytes
        if asked is not None:
            return asked
        return min(_PREFIX_BYTES, self.budget.total_bytes // _PREFIX_SHARE)

    async def _loaded(self, served: Served) -> Model:
        if served.model is not None and not served.broken:
            return served.model
        # In a task of its own: a request that is given up does not end what others wait for.
        loading = asyncio.get_running_loop().create_task(self._load_once(served))
        self._loading.add(loading)
        loading.add_done_callback(self._loading.discard)
        return await asyncio.shield(loading)

    async def _load_once(self, served: Served) -> Model:
        async with self._lock:
            if served.broken and served.model is not None:
                # Nobody new gets it, and answers that have it end with their next step.
                if served.holders:
                    await served.free.wait()
                await self._unload(served)
            if served.model is None:
                served.model = await self._load(served)
            return served.model

    async def _unload_until(self, enough: Callable[[], bool]) -> bool:
        """Unload idle models, the longest unused first; returns whether it is enough."""
        for other in sorted(self.models.values(), key=lambda other: other.used_s):
            if enough():
                return True
            if not other.users:
                await self._unload(other)
        return enough()

    def _wanted_bytes(self, served: Served) -> int:
        return served.weight_bytes + self.draft_bytes + self.prefix_bytes

    async def _make_room(self, served: Served) -> int:
        """Reserve memory for a model, in place of idle ones; returns its bytes."""
        wanted = self._wanted_bytes(served)
        if not await self._unload_until(lambda: self.budget.spare_bytes >= wanted):
            raise self._no_room(served, wanted)
        self.budget.add_model(wanted)  # before it is loaded: no answer gets these bytes meanwhile
        return wanted

    def _no_room(self, served: Served, wanted: int) -> Refusal:
        others = "try again when others are done, or " if self.budget.model_bytes else ""
        return Refusal(
            503,
            f"{served.name} needs {wanted:,} bytes and {max(0, self.budget.spare_bytes):,} of "
            f"{self.budget.total_bytes:,} are free; {others}start the server with a larger "
            "--memory",
            code="memory_exceeded",
        )

    async def _load(self, served: Served) -> Model:
        begun = time.monotonic()
        reserved = await self._make_room(served)
        try:
            model = await asyncio.to_thread(
                Model.load, served.path, progress=self._progress, **self._options
            )
        except BaseException:
            self.budget.add_model(-reserved)
            raise
        for note in model.notes:
            log.warning("%s", note)
        model.engine.scheduler.chunk_s = _CHUNK_S
        prefixes = model.engine.prefixes
        if prefixes is None:
            prefixes = PrefixCache(model.artefact.identity, self.prefix_bytes)
            model.engine.prefixes = prefixes
        elif model.engine.limits is None:
            prefixes.warm()
        buffers = getattr(model.backend, "buffer_bytes", 0)
        served.loaded_bytes = served.weight_bytes + buffers + prefixes.limit_bytes
        if model.engine.draft_model is not None:
            served.loaded_bytes += model.engine.draft_model.nbytes
        # Its buffers are known only now.
        more = served.loaded_bytes - reserved
        if not await self._unload_until(lambda: self.budget.spare_bytes >= more):
            await asyncio.to_thread(model.close)
            self.budget.add_model(-reserved)
            raise self._no_room(served, served.loaded_bytes)
        served.broken = False
        self.budget.add_model(more)
        log.info("loaded %s in %.1f s", served.name, time.monotonic() - begun)
        return model

    async def _unload(self, served: Served) -> None:
        model, served.model = served.model, None
        if model is not None:
            await asyncio.to_thread(model.close)
            self.budget.add_model(-served.loaded_bytes)
            log.info("unloaded %s", served.name)
