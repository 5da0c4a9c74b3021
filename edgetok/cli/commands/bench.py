"""`edgetok bench`: speed and memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetok.cli import options as common
from edgetok.cli import streams
from edgetok.cli.terminal.compiling import Compiling
from edgetok.energy import EnergyMeter
from edgetok.errors import OptionError
from edgetok.machine import peak_memory_mb, physical_cores
from edgetok.runtime.options import DEFAULT_WAIT_S, RunOptions

if TYPE_CHECKING:
    from edgetok.evaluation.speed import Samples

_FIRST_PROMPT_TOKENS = 16


@click.command(
    "bench",
    epilog=common.examples(
        "edgetok bench --threads 1 --depth 512 --json",
        "edgetok bench --profile --energy",
        "edgetok bench artefacts/default-4bit --chats 8 --threads 2",
    ),
)
@common.MODEL_OR_BUNDLED
@click.option(
    "--prompt-tokens",
    type=common.TOKENS,
    help="Length of the prompt whose prefill is timed.  [default: 512]",
)
@click.option(
    "--decode-tokens",
    type=common.TOKENS,
    default=32,
    show_default=True,
    help="Decode steps to time.",
)
@click.option(
    "--depth",
    type=common.TOKENS,
    multiple=True,
    help="Tokens in the cache before the timed steps. May be given several times.  [default: 128; "
    "512 with --chats]",
)
@common.options_of(
    RunOptions,
    "threads",
    multiple=True,
    help="Number of threads. May be given several times.  [default: the model's choice]",
)
@click.option(
    "--repeats",
    type=int,
    default=3,
    show_default=True,
    help="Repeats of each measurement; the median is reported.",
)
@common.options_of(
    RunOptions,
    "device",
    type=click.Choice(["auto", "cpu", "onnxruntime"]),
    help="Where to compute. To measure a GPU, use `make bench-gpu`.",
)
@click.option(
    "--beside",
    type=click.Choice(["onnxruntime"]),
    help="Measure another engine on the same files as well; the two alternate.",
)
@common.options_of(RunOptions, "kv_bits", "compute", "isa")
@click.option(
    "--profile",
    is_flag=True,
    help="Show the time of each phase of a decode step beside the time that memory reads take.",
)
@click.option(
    "--energy",
    is_flag=True,
    help="Show joules per decoded token, from the counters of processor, battery or GPU.",
)
@click.option(
    "--chats",
    type=int,
    metavar="N",
    help="Measure N chats together instead: their speed beside that of one, and how long they wait "
    "while a prompt of --prompt-tokens (4096, or what fits) is read.",
)
@common.options_of(
    RunOptions,
    "max_wait",
    defaults=False,
    help="With --chats: longest time in seconds that a token should take while the prompt is read, "
    f"as for a server.  [default: {DEFAULT_WAIT_S}]",
)
@common.JSON
def command(model: Path, as_json: bool, **given: Any) -> None:
    """Measure speed and memory of MODEL; without one, of the bundled model.

    Times until loaded and until the first token count from the start of loading, with a prompt of
    16 tokens. With several --threads or --depth, "runs" in the JSON has every combination; its
    top level has the last --threads with the first --depth.
    """
    model = common.model_folder(model, quiet=as_json)
    if given["chats"] is not None:
        from edgetok.cli.commands import bench_chats

        bench_chats.measure(model, given, as_json)
        return
    if given["max_wait"] is not None:
        raise OptionError("--max-wait is measured with --chats; add it")
    values = measure_all(model, given)
    if as_json:
        streams.print_json(values)
    else:
        _print(model, values)


def measure_all(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Measure every combination of threads and depth."""
    from edgetok.environment import read_settings
    from edgetok.evaluation import speed

    if given["repeats"] < 1:
        raise OptionError(f"repeats is {given['repeats']}, expected at least 1")
    threads = given["threads"] or (read_settings().threads,)
    depths = given["depth"] or (128,)
    meter = EnergyMeter() if given["energy"] else None
    load_s, first_s = _first_token(path, given, threads[-1])
    memory = {"peak_rss_mb": peak_memory_mb(), "anonymous_mb": speed.anonymous_mb()}
    runs = []
    for count in threads:
        runs += _measure_threads(path, given, count, depths, meter)
    profiles = _profiles(path, given, threads, depths) if given["profile"] else []
    chosen = runs[-len(runs) // len(threads)]
    keys = (
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "read_bandwidth_gb_per_s",
        "decode_bandwidth_share",
        "bytes_per_token",
    )
    return {
        **{key: chosen[key] for key in keys},
        "load_s": load_s,
        "first_token_s": first_s,
        **memory,
        "engine": chosen["engine"],
        "runs": runs,
        **({"profiles": profiles} if profiles else {}),
        **(_energy(meter, chosen) if meter else {}),
    }


def _energy(meter: EnergyMeter, chosen: dict[str, Any]) -> dict[str, Any]:
    """Joules that were counted, or why none were."""
    return {
        "joules_per_token": chosen["joules_per_token"],
        "energy_sources": list(meter.sources),
        "energy_missing": meter.missing or None,
    }


def _first_token(path: Path, given: dict[str, Any], threads: int | None) -> tuple[float, float]:
    """Return the seconds from the start of loading until loaded and until the first token."""
    from edgetok.evaluation.speed import median

    loads, firsts = [], []
    for _ in range(given["repeats"] + 1):
        begin = time.perf_counter()
        with common.load_model(path, given | {"threads": threads}) as model:
            loads.append(time.perf_counter() - begin)
            count = min(_FIRST_PROMPT_TOKENS, model.context_tokens)
            prompt = [i % model.backend.vocab_size for i in range(count)]
            next(model.stream(prompt, max_tokens=1), None)  # a token may well have no text
            firsts.append(time.perf_counter() - begin)
    # the first start may have compiled kernels and read the files from a disk
    return median(loads[1:]), median(firsts[1:])


def _measure_threads(
    path: Path,
    given: dict[str, Any],
    threads: int | None,
    depths: tuple[int, ...],
    meter: EnergyMeter | None,
) -> list[dict[str, Any]]:
    from edgetok.evaluation import speed
    from edgetok.formats.artefact import open_artefact
    from edgetok.runtime.select import choose, load_backend

    options = {key: given[key] for key in ("device", "compute", "isa")}
    options |= {"kv_bits": given["kv_bits"], "threads": threads}
    bandwidth: list[float] = []
    result: list[Samples] = []
    artefacts = [open_artefact(path)]
    options["device"] = choose(artefacts[0], given["device"])[0]  # never a GPU
    engines = [load_backend(artefacts[0], RunOptions(**options), Compiling())[0]]
    try:
        # the backend's own choice where nobody made one; the other engine gets as many
        threads = threads or engines[0].capabilities.threads or physical_cores()
        if given["beside"] is not None:
            artefacts.append(open_artefact(path))  # each engine closes the one it was given
            beside = RunOptions(device=given["beside"], threads=threads)
            engines.append(load_backend(artefacts[1], beside)[0])
        limit = min(engine.context_tokens for engine in engines)
        prompt = given["prompt_tokens"] or min(512, limit)
        steps = given["decode_tokens"]
        speed.check_sizes(limit, prompt, steps, depths)
        result = [
            speed.Samples(engine=engine.name, threads=threads, depth_tokens=depth)
            for depth in depths
            for engine in engines
        ]
        for repeat in range(given["repeats"] + 1):
            bandwidth.append(speed.read_bandwidth(threads, Compiling()))
            for i, samples in enumerate(result):
                which = i % len(engines)
                speed.measure(
                    engines[which],
                    samples,
                    artefacts[which],
                    prompt_tokens=prompt,
                    decode_tokens=steps,
                    seed=repeat,
                    meter=meter,
                )
                if repeat == 0:  # the first round warms caches and clocks
                    samples.prefill_tokens_per_s.clear()
                    samples.decode_tokens_per_s.clear()
                    samples.joules_per_token.clear()
    finally:
        for engine in engines:
            engine.close()
    between = speed.median(bandwidth)
    return [_run(samples, between, energy=meter is not None) for samples in result]


def _profiles(
    path: Path, given: dict[str, Any], threads: tuple[int | None, ...], depths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Measure decode steps at each depth phase by phase, and the read bandwidth beside them."""
    import numpy as np

    from edgetok.evaluation import speed
    from edgetok.runtime.cpu.backend import CpuBackend
    from edgetok.runtime.cpu.profile import profile_steps

    if given["device"] not in ("auto", "cpu"):
        raise OptionError(f"--profile needs --device cpu, not {given['device']}")
    result = []
    for count in threads:
        backend = CpuBackend(
            path, threads=count, isa=given["isa"], kv_bits=given["kv_bits"],
            compute=given["compute"], progress=Compiling(),
        )  # fmt: skip
        for depth in depths:
            read = speed.read_bandwidth(backend.threads, Compiling())
            cache = backend.new_cache(depth + given["decode_tokens"] + 1)
            rng = np.random.default_rng(0)
            tokens = rng.integers(0, backend.vocab_size, cache.capacity_tokens, np.int32)
            if depth:
                backend.forward(cache, tokens[:depth])
            phases = profile_steps(backend, cache, tokens[depth:])
            rows = [
                {
                    "name": phase.name,
                    "count": phase.count,
                    "ms": 1e3 * phase.seconds,
                    "read_mb": phase.read_bytes / 1e6,
                    "floor_ms": phase.read_bytes / read / 1e6,
                }
                for phase in phases
            ]
            result.append(
                {
                    "threads": backend.threads,
                    "depth_tokens": depth,
                    "read_bandwidth_gb_per_s": read,
                    "phases": rows,
                }
            )
        backend.close()
    return result


def _print_profile(profile: dict[str, Any]) -> None:
    def cells(name: str, count: str, ms: float, mb: float, floor: float) -> tuple[str, ...]:
        reads = (f"{mb:,.1f}", f"{mb / ms:,.1f}", f"{floor:.3f}") if mb else ("", "", "")
        return (name, count, f"{ms:.3f}", *reads)

    phases, threads = profile["phases"], profile["threads"]
    total = [sum(phase[key] for phase in phases) for key in ("ms", "read_mb", "floor_ms")]
    streams.print_columns(
        f"A decode step, {threads} thread{'s' if threads > 1 else ''}, "
        f"depth {profile['depth_tokens']:,}, "
        f"read loop {profile['read_bandwidth_gb_per_s']:.1f} GB/s",
        ("phase", "calls", "ms", "MB", "GB/s", "floor ms"),
        [
            *(
                cells(p["name"], str(p["count"]), p["ms"], p["read_mb"], p["floor_ms"])
                for p in phases
            ),
            cells("all", "", *total),
        ],
    )


def _run(samples: Samples, bandwidth: float, *, energy: bool) -> dict[str, Any]:
    from edgetok.evaluation.speed import median

    decode = median(samples.decode_tokens_per_s)
    return {
        "engine": samples.engine,
        "threads": samples.threads,
        "depth_tokens": samples.depth_tokens,
        "prefill_tokens_per_s": median(samples.prefill_tokens_per_s),
        "decode_tokens_per_s": decode,
        "decode_tokens_per_s_range": [
            min(samples.decode_tokens_per_s),
            max(samples.decode_tokens_per_s),
        ],
        "read_bandwidth_gb_per_s": bandwidth,
        "decode_bandwidth_share": decode * samples.bytes_per_token / (bandwidth * 1e9),
        "bytes_per_token": samples.bytes_per_token,
        **({"joules_per_token": _middle(samples.joules_per_token)} if energy else {}),
    }


def _middle(values: list[float]) -> float | None:
    from edgetok.evaluation.speed import median

    return median(values) if values else None


def _energy_rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    if "joules_per_token" not in values:
        return []
    label, joules = "Energy per token", values["joules_per_token"]
    if joules is None:
        return [(label, f"not known: {values['energy_missing'] or 'a counter has gone'}")]
    return [(label, f"{joules:.3g} J ({', '.join(values['energy_sources'])}), of the machine")]


def _print(path: Path, values: dict[str, Any]) -> None:
    header = ("engine", "threads", "depth", "prefill/s", "decode/s", "GB/s read", "share")
    streams.print_columns(
        str(path),
        header,
        [
            (
                run["engine"],
                str(run["threads"]),
                f"{run['depth_tokens']:,}",
                f"{run['prefill_tokens_per_s']:,.1f}",
                f"{run['decode_tokens_per_s']:,.1f}",
                f"{run['read_bandwidth_gb_per_s']:.1f}",
                f"{100 * run['decode_bandwidth_share']:.0f} %",
            )
            for run in values["runs"]
        ],
    )
    for profile in values.get("profiles", []):
        _print_profile(profile)
    anonymous = values["anonymous_mb"]
    streams.print_table(
        "",
        [
            ("prefill/s, decode/s", "tokens per second, the median of the repeats"),
            ("share", "share of the read bandwidth that decoding reaches"),
            ("Loaded after", f"{values['load_s']:.3f} s"),
            ("First token after", f"{values['first_token_s']:.3f} s"),
            ("Read per token", streams.megabytes(values["bytes_per_token"])),
            *_energy_rows(values),
            (
                "Memory, one model",
                f"{values['peak_rss_mb']:,.0f} MB at most"
                + ("" if anonymous is None else f", {anonymous:,.0f} MB its own"),
            ),
        ],
    )
