"""One engine in one process, measured on command: lines of JSON in, lines of JSON out.

    PYTHON benchmarks/peers/peer_worker.py ENGINE MODEL --threads N --capacity TOKENS

`peers.py` starts it, with the Python that has the engine. Commands: {"do": "prefill", "tokens"},
{"do": "decode", "depth", "beyond", "steps"}, {"do": "logits", "ids"} and {"do": "memory"}. Tokens
are random and new every time, so that no engine remembers a prompt.

Every engine has `keep(length)`, which shortens its cache to at most so many tokens and says how
many it holds now, and `run(ids)`, which appends tokens and returns the last one's logits.
"""

# ruff: noqa: D102

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


class Edgetok:
    """edgetok on its own artefact, int8 cache."""

    def __init__(self, model: str, threads: int, capacity: int) -> None:
        from edgetok.runtime.cpu.backend import CpuBackend

        self.backend = CpuBackend(model, threads=threads)
        self.cache = self.backend.new_cache(capacity)
        self.bytes_per_token = self.backend.bytes_per_token

    def keep(self, length: int) -> int:
        self.cache.truncate(min(length, self.cache.length_tokens))
        return self.cache.length_tokens

    def run(self, ids: np.ndarray) -> np.ndarray:
        return self.backend.forward(self.cache, ids)


class LlamaCpp:
    """llama.cpp on a GGUF file, its default cache (float16)."""

    def __init__(self, model: str, threads: int, capacity: int) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            model, n_ctx=capacity, n_threads=threads, n_threads_batch=threads, verbose=False,
            flash_attn=True,
        )  # fmt: skip
        self.bytes_per_token = Path(model).stat().st_size

    def keep(self, length: int) -> int:
        self.llama.n_tokens = min(length, self.llama.n_tokens)
        return self.llama.n_tokens

    def run(self, ids: np.ndarray) -> np.ndarray:
        import llama_cpp

        self.llama.eval(ids.tolist())  # drops what lies beyond n_tokens first
        logits = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self.llama.n_vocab(),))


class GenAI:
    """onnxruntime-genai on a folder of its own kind."""

    def __init__(self, model: str, threads: int, capacity: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(model)
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=capacity, min_length=capacity, do_sample=False)
        self.generator = og.Generator(self.model, params)
        self.length = 0
        self.bytes_per_token = sum(p.stat().st_size for p in Path(model).glob("*.data"))

    def keep(self, length: int) -> int:
        if length < self.length:
            self.generator.rewind_to(length)
            self.length = length
        return self.length

    def run(self, ids: np.ndarray) -> np.ndarray:
        self.generator.append_tokens(ids.astype(np.int32)[None])
        self.length += len(ids)
        return self.generator.get_logits().reshape(-1)


class OpenVino:
    """OpenVINO on a folder with openvino_model.xml, its cache inside the request."""

    def __init__(self, model: str, threads: int, capacity: int) -> None:
        import openvino as ov
        from openvino import opset13 as ops

        core = ov.Core()
        graph = core.read_model(f"{model}/openvino_model.xml")
        # The head for the last token alone, as openvino-genai has it.
        product = graph.get_results()[0].input_value(0).get_node()
        while product.get_type_name() != "MatMul":
            product = product.input_value(0).get_node()
        last, end, step, axis = (np.array([n], np.int64) for n in (-1, 2**31 - 1, 1, 1))
        product.input(0).replace_source_output(
            ops.slice(product.input_value(0), last, end, step, axis).output(0)
        )
        graph.validate_nodes_and_infer_types()
        hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(graph, "CPU", hints).create_infer_request()
        self.length = 0
        self.bytes_per_token = Path(model, "openvino_model.bin").stat().st_size

    def keep(self, length: int) -> int:
        if length < self.length:  # its states cannot be shortened
            self.request.reset_state()
            self.length = 0
        return self.length

    def run(self, ids: np.ndarray) -> np.ndarray:
        before, self.length = self.length, self.length + len(ids)
        self.request.infer(
            {
                "input_ids": ids.astype(np.int64)[None],
                "attention_mask": np.ones((1, self.length), np.int64),
                "position_ids": np.arange(before, self.length)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        return self.request.get_output_tensor().data.reshape(-1)


PIECE = 512  # tokens read at once before a decode; thousands take some engines gigabytes
ENGINES = {"edgetok": Edgetok, "llama.cpp": LlamaCpp, "genai": GenAI, "openvino": OpenVino}


def memory() -> dict[str, int]:
    """Resident and anonymous bytes of this process."""
    result = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, kib, *_ = line.split()
        result[name] = int(kib) * 1024
    return {"rss_bytes": result["Rss:"], "anonymous_bytes": result["Anonymous:"]}


def seconds(engine: Any, batches: list[np.ndarray]) -> dict[str, float]:
    """Return the seconds that batches of tokens take one after the other, and of processor time.

    With one thread, processor time leaves out what the machine did for others meanwhile.
    """
    begin, before = time.perf_counter(), time.process_time()
    for ids in batches:
        engine.run(ids)
    cpu_s = time.process_time() - before
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, default=30000, help="ids are below it")
    args = parser.parse_args()
    rng = np.random.default_rng()

    def tokens(count: int) -> np.ndarray:
        return rng.integers(10, args.vocabulary, count).astype(np.int32)

    # Loading is timed after the import, which a program pays once.
    modules = {"llama.cpp": "llama_cpp", "genai": "onnxruntime_genai"}
    importlib.import_module(modules.get(args.engine, args.engine))
    begin = time.perf_counter()
    engine = ENGINES[args.engine](args.model, args.threads, args.capacity)
    load_s = time.perf_counter() - begin
    engine.run(tokens(8))
    first_s = time.perf_counter() - begin
    answer: dict[str, Any] = {
        "load_s": load_s,
        "first_token_s": first_s,
        "bytes_per_token": engine.bytes_per_token,
    }
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "memory":
            answer = memory()
        elif asked["do"] == "prefill":
            engine.keep(0)
            answer = seconds(engine, [tokens(asked["tokens"])])
        elif asked["do"] == "decode":
            length = engine.keep(asked["depth"] + asked["beyond"])
            for first in range(length, asked["depth"], PIECE):
                engine.run(tokens(min(PIECE, asked["depth"] - first)))
            engine.run(tokens(1))  # warms what one-token steps use
            answer = seconds(engine, list(tokens(asked["steps"]).reshape(-1, 1)))
        elif asked["do"] == "logits":
            engine.keep(0)
            answer = {"logits": engine.run(np.array(asked["ids"], np.int32)).tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
