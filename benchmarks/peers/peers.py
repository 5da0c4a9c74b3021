"""edgetok beside llama.cpp, onnxruntime-genai and OpenVINO, alternating in one run.

    python benchmarks/models/make_checkpoint.py SHAPE.config.json
    edgetok convert out/checkpoints/SHAPE --method rtn --bits 4 --head-bits 4 --out out/SHAPE-4
    PEER_PYTHON benchmarks/peers/peer_gguf.py out/checkpoints/SHAPE out/peers/SHAPE
    python benchmarks/peers/peers.py measure --peer-python PEER_PYTHON \
        --into out/peers/SHAPE.jsonl --threads 2 --decode 0 4096 --prefill 512 \
        edgetok=out/SHAPE-4 llama.cpp=out/peers/SHAPE/Q4_0.gguf openvino=FOLDER genai=FOLDER
    python benchmarks/peers/peers.py report out/peers/*.jsonl --plot docs/peers.svg

A contender is ENGINE=PATH and runs in a process of its own (`peer_worker.py`), with the peers'
Python where it is not edgetok. Each repeat measures the read loop and then everyone in turn, in
alternating order, with a pause in which threads that spin go to sleep. One JSON object a sample is
appended to the file, so a long run may be cut in pieces. The report has medians and, in brackets,
half the distance between the quartiles: of the samples during which nothing else computed
(`others`, cores), or of all where there are none.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAUSE_S = 0.15  # longer than any engine's threads spin after their work
OTHERS = 0.1  # cores that other processes may take during a sample that counts
_WORKER = Path(__file__).with_name("peer_worker.py")
Sample = dict[str, Any]


class Contender:
    """A worker process and what it said at its start."""

    def __init__(self, text: str, capacity: int, args: argparse.Namespace) -> None:
        self.engine, _, model = text.partition("=")
        path = Path(model)
        self.name = self.engine + (f" {path.stem}" if path.is_file() else f" {path.name}")
        python = sys.executable if self.engine == "edgetok" else args.peer_python
        command = [python, str(_WORKER), self.engine, model]
        for name, value in (
            ("threads", args.threads),
            ("capacity", capacity),
            ("vocabulary", args.vocabulary),
        ):
            command += [f"--{name}", str(value)]
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.start: Sample = self._answer()
        self.start["process_first_token_s"] = time.perf_counter() - begin

    def ask(self, **command: Any) -> Sample:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None
        begin, before = time.perf_counter(), self._others_s()
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        seconds = time.perf_counter() - begin
        answer["others"] = round((self._others_s() - before) / seconds, 3)
        return answer

    def _others_s(self) -> float:
        """Processor time of everything but this engine since the machine started (Linux)."""
        user, nice, system = (int(n) for n in Path("/proc/stat").read_text().split()[1:4])
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        own = int(fields[11]) + int(fields[12])
        return (user + nice + system - own) / os.sysconf("SC_CLK_TCK")

    def _answer(self) -> Sample:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # some engines print lines of their own
                answer: Sample = json.loads(line)
                return answer
        raise SystemExit(f"{self.name}: ended with exit code {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def measure(args: argparse.Namespace) -> None:
    """Start everyone and append samples to the file."""
    from edgetok.environment import read_settings
    from edgetok.kernels_cpu.bandwidth.measure import read_bandwidth
    from edgetok.kernels_cpu.program import loader
    from edgetok.kernels_cpu.simd import isa

    kernels = loader.load(
        isa.choose(None), read_settings().cache_dir, modules=("bandwidth.kernels",)
    )
    longest = max([*args.decode, *args.prefill])
    # At a depth decoding goes on where the repeat before ended: filling a deep cache takes minutes,
    # and not every engine's can be shortened.
    beyond = (args.steps + 1) * args.repeats
    capacity = longest + beyond + 64
    contenders: list[Contender] = []
    args.into.parent.mkdir(parents=True, exist_ok=True)
    with args.into.open("a") as out:

        def write(who: str, what: str, size: int, **values: Any) -> None:
            common = {"shape": args.shape or args.into.stem, "threads": args.threads}
            sample = {**common, "engine": who, "what": what, "size": size, **values}
            out.write(json.dumps(sample) + "\n")
            out.flush()

        try:
            for text in args.contenders:
                if text.startswith("edgetok="):  # compiles what the cache of kernels lacks
                    Contender(text, capacity, args).close()
                one = Contender(text, capacity, args)
                contenders.append(one)
                write(one.name, "start", capacity, **one.start)
            for repeat in range(args.repeats):
                write("read loop", "read", 0, value=read_bandwidth(kernels, args.threads, 256))
                order = contenders if repeat % 2 == 0 else contenders[::-1]
                for depth in args.decode:
                    for one in order:
                        time.sleep(PAUSE_S)
                        slack = beyond if depth > 20 * beyond else 0
                        answer = one.ask(do="decode", depth=depth, beyond=slack, steps=args.steps)
                        bytes_per_token = one.start["bytes_per_token"]
                        rate = args.steps / answer["seconds"]
                        others, cpu = answer["others"], args.steps / answer["cpu_seconds"]
                        write(
                            one.name, "decode", depth,
                            value=rate, cpu=cpu, bytes=bytes_per_token, others=others,
                        )  # fmt: skip
                for tokens in args.prefill:
                    for one in order:
                        time.sleep(PAUSE_S)
                        answer = one.ask(do="prefill", tokens=tokens)
                        rate, others = tokens / answer["seconds"], answer["others"]
                        cpu = tokens / answer["cpu_seconds"]
                        write(one.name, "prefill", tokens, value=rate, cpu=cpu, others=others)
            for one in contenders:
                write(one.name, "memory", capacity, **one.ask(do="memory"))
        finally:
            for one in contenders:
                one.close()


def groups(samples: list[Sample]) -> dict[tuple[Any, ...], list[Sample]]:
    """Samples by shape, threads, what, size and engine, in the order of their first appearance."""
    result: dict[tuple[Any, ...], list[Sample]] = {}
    for s in samples:
        key = (s["shape"], s["threads"], s["what"], s["size"], s["engine"])
        result.setdefault(key, []).append(s)
    for key, all_of_it in result.items():
        calm = [s for s in all_of_it if s.get("others", 0.0) <= OTHERS]
        result[key] = calm or all_of_it
    return result


def spread(values: list[float]) -> str:
    """Median and, relative to it, half the distance between the quartiles."""
    middle = statistics.median(values)
    if len(values) < 3:
        return f"{middle:,.1f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.1f} (±{(high - low) / middle / 2:.0%})"


def table(samples: list[Sample]) -> str:
    """Markdown: one row an engine, one column a measurement, one table a shape and thread count."""
    result, lines = groups(samples), []
    for shape, threads in dict.fromkeys(key[:2] for key in result):
        mine = {key[2:]: value for key, value in result.items() if key[:2] == (shape, threads)}
        read = statistics.median(s["value"] for s in mine["read", 0, "read loop"])
        columns = sorted({key[:2] for key in mine if key[0] in ("decode", "prefill")})
        engines = dict.fromkeys(key[2] for key in mine if key[0] == "start")
        lines += [f"\n{shape}, {threads} threads, read loop {read:.1f} GB/s\n"]
        heads = [f"{what} {'at ' if what == 'decode' else ''}{size:,}" for what, size in columns]
        heads = [
            "engine",
            "MB/token",
            *heads,
            "share",
            "load s",
            "first token s",
            "RSS MB",
            "own MB",
        ]
        lines += [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
        for engine in engines:
            starts = next(v for k, v in mine.items() if k[0] == "start" and k[2] == engine)
            memory = [v for k, v in mine.items() if k[0] == "memory" and k[2] == engine]
            moved = starts[0]["bytes_per_token"]
            cells = [engine, f"{moved / 1e6:,.0f}"]
            for column in columns:
                values = [s["value"] for s in mine.get((*column, engine), [])]
                cells.append(spread(values) if values else "")
            decode = [s["value"] for s in mine.get(("decode", 0, engine), [])]
            share = statistics.median(decode) * moved / read / 1e9 if decode else None
            cells.append("" if share is None else f"{share:.0%}")
            for key in ("load_s", "process_first_token_s"):
                cells.append(f"{statistics.median(s[key] for s in starts):.2f}")
            for key in ("rss_bytes", "anonymous_bytes"):
                cells.append(f"{memory[0][-1][key] / 1e6:,.0f}" if memory else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def processor_table(samples: list[Sample]) -> str:
    """Markdown: tokens a second of processor time, the best sample of each kind of engine."""
    best: dict[tuple[Any, ...], float] = {}
    for s in samples:
        if "cpu" in s and s["threads"] == 1:  # threads that spin would count as work
            key = (s["shape"], s["what"], s["size"], s["engine"].split()[0])
            best[key] = max(best.get(key, 0.0), s["cpu"])
    engines = list(dict.fromkeys(key[3] for key in best))
    lines = [f"| shape | | {' | '.join(engines)} |", f"|---|---|{'---:|' * len(engines)}"]
    for row in dict.fromkeys(key[:3] for key in best):
        rates = [best.get((*row, engine)) for engine in engines]
        cells = ["" if rate is None else f"{rate:,.1f}" for rate in rates]
        shape, what, size = row
        lines.append(f"| {shape} | {what} {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(samples: list[Sample], path: Path) -> None:
    """Decode speed at an empty cache against bytes per token, and what the memory allows."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    result = {k: v for k, v in groups(samples).items() if k[2] == "decode" and k[3] == 0}
    threads = max(key[1] for key in result)
    reads = [s["value"] for s in samples if s["what"] == "read" and s["threads"] == threads]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    marks = {}
    largest = 0.0
    for (_, count, _, _, engine), values in result.items():
        if count != threads:
            continue
        kind = engine.split()[0]
        style = marks.setdefault(kind, f"C{len(marks)}")
        x = values[0]["bytes"] / 1e6
        y = statistics.median(s["value"] for s in values)
        largest = max(largest, x)
        label = kind if kind not in axes.get_legend_handles_labels()[1] else None
        axes.plot(x, y, "o", color=style, label=label)
    sizes = [largest * i / 100 for i in range(25, 111)]
    limit = statistics.median(reads) * 1e3
    axes.plot(sizes, [limit / size for size in sizes], "k--", lw=1, label="memory limit")
    axes.set(xlabel="MB of weights a token", ylabel=f"tokens/s, {threads} threads", ylim=(0, None))
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure", help="append samples to a file")
    one.set_defaults(work=measure)
    one.add_argument("contenders", nargs="+", metavar="ENGINE=PATH")
    one.add_argument("--peer-python", default=sys.executable)
    one.add_argument("--into", type=Path, required=True)
    one.add_argument("--shape", help="name in the report; the file's where it is not given")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--decode", type=int, nargs="*", default=[0], metavar="DEPTH")
    one.add_argument("--prefill", type=int, nargs="*", default=[512], metavar="TOKENS")
    one.add_argument("--steps", type=int, default=16, help="decoded tokens a sample")
    one.add_argument("--vocabulary", type=int, default=30000, help="ids are random below it")
    one.add_argument("--repeats", type=int, default=5)
    one = commands.add_parser("report", help="print tables, draw the plot")
    one.set_defaults(work=report)
    one.add_argument("files", type=Path, nargs="+")
    one.add_argument("--plot", type=Path)
    one.add_argument(
        "--processor", action="store_true",
        help="tokens a second of processor time, best sample: of one thread, beside other work",
    )  # fmt: skip
    args = parser.parse_args()
    args.work(args)


def report(args: argparse.Namespace) -> None:
    """Print a table a shape and, if asked for, draw the plot."""
    lines = [line for path in args.files for line in path.read_text().splitlines()]
    samples = [json.loads(line) for line in lines]
    print(processor_table(samples) if args.processor else table(samples))
    if args.plot:
        plot(samples, args.plot)


if __name__ == "__main__":
    main()
