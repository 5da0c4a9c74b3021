"""Short names of models, and the names that are near a misspelt one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

_PAGE = re.compile(r"(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/([^?#]+).*", re.I)
_VIEWS = ("tree", "blob", "resolve", "raw")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

SHORT_NAMES = MappingProxyType(
    {
        "gemma2": "google/gemma-2-2b-it",
        "gemma3": "google/gemma-3-270m-it",
        "gemma3-1b": "google/gemma-3-1b-it",
        "gemma4": "google/gemma-4-E2B-it",
        "gpt-oss": "openai/gpt-oss-20b",
        "granite3": "ibm-granite/granite-3.3-2b-instruct",
        "granite4": "ibm-granite/granite-4.0-h-350m",
        "lfm2": "LiquidAI/LFM2-350M",
        "lfm2.5": "LiquidAI/LFM2.5-1.2B-Instruct",
        "llama3.2": "meta-llama/Llama-3.2-1B-Instruct",
        "llama3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
        "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
        "olmo2": "allenai/OLMo-2-0425-1B-Instruct",
        "phi3": "microsoft/Phi-3-mini-4k-instruct",
        "qwen2.5": "Qwen/Qwen2.5-0.5B-Instruct",
        "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
        "qwen3": "Qwen/Qwen3-0.6B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B",
        "qwen3-4b": "Qwen/Qwen3-4B",
        "qwen3.5": "Qwen/Qwen3.5-0.8B",
        "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "smollm3": "HuggingFaceTB/SmolLM3-3B",
        "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    }
)
"""The smallest model of a family under the family's name, others with their size."""


def hub_id(name: str) -> str | None:
    """Return the hub id that a short name stands for; None if it is not one.

    A revision behind an @ stays there.
    """
    short, at, revision = name.partition("@")
    known = SHORT_NAMES.get(short.lower())
    return None if known is None or bool(at) != bool(revision) else known + at + revision


def without_page(name: str) -> str:
    """Return the hub id that a pasted address of the hub's web pages shows, or the name as it is.

    Of `https:/` one slash is enough: a path that was made of it has lost the other.
    """
    found = _PAGE.fullmatch(name)
    if found is None:
        return name
    parts = found[1].strip("/").split("/")
    if len(parts) > 3 and parts[2] in _VIEWS:
        inside = "/".join(parts[:2] + parts[4:])
        return inside if parts[3] == "main" else f"{inside}@{parts[3]}"
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class HubName:
    """The meaning of a name on the hub.

    Attributes:
        repository: `owner/name`.
        file: a GGUF file in it, or None.
        revision: a branch, tag or commit, or None.
    """

    repository: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubName | None:
        """Read a short name, `owner/name` or `owner/name/file.gguf`, each maybe with @revision.

        None if it has another form.
        """
        base, at, revision = (hub_id(name) or name).partition("@")
        owner, *parts = base.split("/")
        repository, inside = "/".join([owner, *parts[:1]]), parts[1:]
        if not HUB_ID.fullmatch(repository) or bool(at) != bool(revision):
            return None
        if inside and (set(inside) & {"", ".", ".."} or not base.lower().endswith(".gguf")):
            return None
        return cls(repository, "/".join(inside) or None, revision or None)


def near_names(name: str, others: Iterable[str] = ()) -> list[str]:
    """Return up to three known names that look like a misspelt one, the nearest first.

    Args:
        name: as it was typed.
        others: names that are known besides the short ones, such as those in the model folder.
    """
    known = {_plain(item): item for item in (*others, *SHORT_NAMES.values(), *SHORT_NAMES)}
    found = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.6)
    return [known[item] for item in found]


def hint_for(
    name: str,
    others: Iterable[str] = (),
    takes: str = "an artefact, a model folder, a GGUF file, a short name or a hub id",
) -> str:
    """Return the end of a message about a name that is nothing: what could have been meant.

    Args:
        name: as it was typed.
        others: see `near_names`.
        takes: the alternatives.
    """
    base, at, revision = name.partition("@")
    if at and not revision and HubName.parse(base) is not None:
        return f"a branch, tag or commit has to follow the @, as in {base}@main; or use {base}"
    if near := near_names(base, others):
        behind = at + revision
        return f"did you mean {' or '.join(n + behind if HubName.parse(n) else n for n in near)}?"
    if "/" in name or "\\" in name:
        return f"give {takes}"
    return f"give {takes}; short names are {', '.join(SHORT_NAMES)}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", name.lower())
