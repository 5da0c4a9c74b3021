"""Options of the server. The command line makes its flags from the fields."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from edgetok.errors import OptionError
from edgetok.quantities import parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of the server. Each annotation holds the option's help text.

    Attributes:
        key: that clients must send; not a flag of the same kind as others, because it is a secret.
    """

    host: Annotated[
        str,
        "Address to listen on. Any but a loopback address needs a key, e.g. 0.0.0.0 for all.",
    ] = "127.0.0.1"
    port: Annotated[int, "Port to listen on; 0 takes any free one."] = 8080
    allow_host: Annotated[
        tuple[str, ...],
        "Accept requests under this name of the machine, e.g. box.local; numeric addresses and "
        "localhost are always accepted. May be given several times; '*' accepts all.",
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        "Accept requests from web pages or apps of this origin, e.g. app://obsidian.md or "
        "'chrome-extension://*'. May be given several times.",
    ] = ()
    memory: Annotated[
        int | str | None,
        "Memory for models and KV caches together, e.g. 2GB.  [default: half of what is free]",
    ] = None
    parallel: Annotated[int, "Maximum answers that are generated at the same time."] = 32
    queue: Annotated[int, "Maximum answers that wait; further requests get HTTP status 503."] = 64
    unload_after: Annotated[
        int, "Unload a model that was not used for this many seconds; 0 never does."
    ] = 900
    key: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that are out of range or unsafe.

        Raises:
            OptionError: names the option, its value and what is expected.
        """
        for name, low, high in (
            ("port", 0, 65535),
            ("parallel", 1, 1024),
            ("queue", 0, 65536),
            ("unload_after", 0, 10**9),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise OptionError(
                    f"--{name.replace('_', '-')} is {value!r}, expected a whole number from {low} "
                    f"to {high}"
                )
        if self.key is not None and len(self.key) < 8:
            raise OptionError("the key is shorter than 8 characters; choose a longer one")
        if self.key is not None and not _is_header(self.key):
            raise OptionError(
                "the key has characters that clients cannot send in a header; choose one of ASCII "
                "letters, digits and signs, without spaces or line ends around it"
            )
        if self.key is None and not is_loopback(self.host):
            raise OptionError(
                f"--host {self.host} is reachable from other machines and there is no key; set "
                "EDGETOK_API_KEY, or leave --host out"
            )
        if isinstance(self.memory, str):
            parse_bytes(self.memory)

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory budget in bytes; None where none was given."""
        return parse_bytes(self.memory) if isinstance(self.memory, str) else self.memory


def _is_header(key: str) -> bool:
    """Return whether all clients send a text in a header alike."""
    return key.isascii() and key.isprintable() and key == key.strip()


def is_loopback(host: str) -> bool:
    """Return whether nobody but this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
