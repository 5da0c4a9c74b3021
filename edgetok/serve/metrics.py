"""Counters of the server, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from collections import Counter

_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts since the server was started. Used by one event loop.

    Attributes:
        prompt_tokens: tokens of all answers, read or cached.
        cached_tokens: those of them that were not computed again.
        generated_tokens: tokens of all answers.
        evicted_tokens: that bounded caches no longer held when an answer ended.
        abandoned: answers whose client went away.
    """

    def __init__(self) -> None:
        """Begin at nothing."""
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.evicted_tokens = self.abandoned = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first: Counter[float] = Counter()
        self._first_sum_s, self._first_count = 0.0, 0

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests[route, status] += 1

    def first_token(self, seconds: float) -> None:
        """Note how long a client waited for the first token."""
        self._first_sum_s += seconds
        self._first_count += 1
        for bound in _BOUNDS_S:
            self._first[bound] += seconds <= bound

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Return all as text.

        Args:
            gauges: help text and value now, by name.
        """
        lines: list[str] = []

        def head(name: str, kind: str, told: str) -> None:
            lines.extend((f"# HELP {name} {told}", f"# TYPE {name} {kind}"))

        head("edgetok_requests_total", "counter", "Requests by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            lines.append(f'edgetok_requests_total{{route="{route}",status="{status}"}} {count}')
        for name, told, value in (
            ("prompt_tokens", "Tokens of prompts.", self.prompt_tokens),
            (
                "cached_tokens",
                "Tokens of prompts, not computed again.",
                self.cached_tokens,
            ),
            ("generated_tokens", "Tokens of answers.", self.generated_tokens),
            ("evicted_tokens", "Tokens that bounded caches evicted.", self.evicted_tokens),
            ("abandoned", "Requests whose client went away.", self.abandoned),
        ):
            head(f"edgetok_{name}_total", "counter", told)
            lines.append(f"edgetok_{name}_total {value}")
        name = "edgetok_first_token_seconds"
        head(name, "histogram", "Time from the request to its first token.")
        for bound in _BOUNDS_S:
            lines.append(f'{name}_bucket{{le="{bound}"}} {self._first[bound]}')
        lines.append(f'{name}_bucket{{le="+Inf"}} {self._first_count}')
        lines.append(f"{name}_sum {self._first_sum_s:.6f}")
        lines.append(f"{name}_count {self._first_count}")
        for name, (told, level) in gauges.items():
            head(f"edgetok_{name}", "gauge", told)
            lines.append(f"edgetok_{name} {level:g}")
        return "\n".join(lines) + "\n"
