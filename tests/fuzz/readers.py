"""Every reader of foreign bytes, with valid inputs to begin with and the damage that suits them.

A reader may refuse (a `UserError`) or accept; anything else, such as another exception, a signal,
ten seconds or six gigabytes, is a fault.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetok.errors import CheckpointError, SessionError, UserError
from edgetok.models.bundled import bundled_model
from tests.fuzz import mutate

Mutate = Callable[[bytes, random.Random], bytes]

SOURCE = Path(__file__).parent.parent.parent / "models/default"
DEEP, DEEPEST = 64, 4096  # decoders of more layers than DEEPEST are refused


@dataclass(frozen=True)
class Reader:
    """A reader that is fuzzed.

    Attributes:
        seeds: valid inputs.
        mutate: damages one.
        read: reads a damaged one in a folder of its own.
        costly: an input takes a millisecond or more.
    """

    seeds: list[bytes]
    mutate: Mutate
    read: Callable[[bytes, Path], object]
    costly: bool = False


def all_readers() -> dict[str, Callable[[Path], Reader]]:
    """Functions that make a reader, given a folder that it may fill, by name."""
    return {
        "json": _json,
        "safetensors": _safetensors,
        "index": _index,
        "config": _config,
        "generation config": _generation_config,
        "tokenizer": _tokenizer,
        "template": _template,
        "gguf": _gguf,
        "packed checkpoint": _packed,
        "onnx message": _onnx,
        "artefact graph": _graph,
        "manifest": _manifest,
        "session": _session,
        "prefix": _prefix,
    }


def _json(folder: Path) -> Reader:
    from edgetok.formats import strict_json

    def read(data: bytes, _: Path) -> object:
        return strict_json.loads_object(data, "x", max_bytes=1 << 24, error=CheckpointError)

    names = ("config.json", "tokenizer_config.json", "generation_config.json")
    seeds = [(SOURCE / name).read_bytes() for name in names]
    return Reader(seeds, mutate.of_json, read)


def _safetensors(folder: Path) -> Reader:
    from edgetok.formats.safetensors_file import read_header

    header = {"__metadata__": {"format": "pt"}}
    header |= {
        f"layers.{i}.w": {"dtype": kind, "shape": [4, 4], "data_offsets": [32 * i, 32 * i + 32]}
        for i, kind in enumerate(("F16", "BF16"))
    }
    text = json.dumps(header).encode()
    seed = struct.pack("<Q", len(text)) + text + bytes(64)

    def read(data: bytes, place: Path) -> object:
        path = place / "model.safetensors"
        path.write_bytes(data)
        return read_header(path, hashlib.sha256())

    return Reader([seed], mutate.of_headed, read)


def _index(folder: Path) -> Reader:
    from edgetok.formats.checkpoint import open_checkpoint

    tensors = {f"w{i}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for i in range(2)}
    shards = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]

    @functools.cache
    def fill(place: Path) -> None:
        (place / "config.json").write_bytes((SOURCE / "config.json").read_bytes())
        for shard, (name, record) in zip(shards, tensors.items(), strict=True):
            text = json.dumps({name: record}).encode()
            (place / shard).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    def read(data: bytes, place: Path) -> object:
        fill(place)
        (place / "model.safetensors.index.json").write_bytes(data)
        checkpoint = open_checkpoint(place)
        return [checkpoint.tensor(name) for name in checkpoint.names]

    index = {"metadata": {"total_size": 16}, "weight_map": dict(zip(tensors, shards, strict=True))}
    return Reader([json.dumps(index).encode()], mutate.of_json, read)


def _config(folder: Path) -> Reader:
    from edgetok.formats import strict_json
    from edgetok.models import read_family
    from edgetok.models.operations import operations

    plain = json.loads((SOURCE / "config.json").read_bytes())
    seeds = [json.dumps(plain).encode()]
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 2048}  # fmt: skip
    for kind in ("qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "granite", "olmo2"):
        more = {"model_type": kind, "architectures": ["XForCausalLM"], "rope_scaling": scaled,
                "sliding_window": 64, "head_dim": 32, "layer_types": None}  # fmt: skip
        seeds.append(json.dumps(plain | more).encode())

    def read(data: bytes, _: Path) -> object:
        config = strict_json.loads_object(data, "config.json", max_bytes=1 << 22)
        # Lists of very deep decoders are long, not different, and take a second each.
        if type(depth := config.get("num_hidden_layers")) is int and depth <= DEEPEST:
            config["num_hidden_layers"] = min(depth, DEEP)
        return operations(read_family(config).spec)

    accepted = []
    for seed in seeds:
        with contextlib.suppress(UserError):
            read(seed, folder)
            accepted.append(seed)
    assert len(accepted) >= 5
    return Reader(accepted, mutate.of_json, read)


def _generation_config(folder: Path) -> Reader:
    from edgetok.sampling.options import SamplingOptions
    from edgetok.text.generation_config import read_generation_config

    def read(data: bytes, place: Path) -> object:
        (place / "generation_config.json").write_bytes(data)
        return SamplingOptions.from_generation_config(read_generation_config(place))

    seed = json.loads((SOURCE / "generation_config.json").read_bytes())
    seed |= {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
    return Reader([json.dumps(seed).encode()], mutate.of_json, read)


def _tokenizer(folder: Path) -> Reader:
    from edgetok.text.tokenizer_check import open_core

    whole = json.loads((SOURCE / "tokenizer.json").read_bytes())
    model = whole["model"]
    keep = dict(sorted(model["vocab"].items(), key=lambda item: item[1])[:300])
    model["vocab"] = keep
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in keep][:60]
    more = dict(whole)
    more["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "_"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            {"type": "NFKC"},
        ],
    }
    seeds = [json.dumps(whole).encode(), json.dumps(more).encode()]

    def read(data: bytes, _: Path) -> object:
        core = open_core(data, "tokenizer.json", CheckpointError)
        return core.decode(core.encode("It is 12 o'clock.  \n\u00e9 \u4f60").ids)

    return Reader(seeds, mutate.of_json, read, costly=True)


_TEMPLATES = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- set ns = namespace(found=false) -%}{%- if messages[0].role == 'system' -%}"
    "{{ messages[0].content.replace('a', 'b')[:20] }}{%- set ns.found = true -%}{%- endif -%}"
    "{%- macro tell(x) -%}{{ x.upper() ~ '!' * 3 }}{%- endmacro -%}{%- for m in messages[1:] -%}"
    "{%- if loop.index0 % 2 == 0 and not loop.last -%}{{ tell(m.content.split(' ') | join('-')) }}"
    "{%- elif m.content is string -%}{{ m | tojson(indent=2) }}{%- else -%}"
    "{{ raise_exception('odd') }}{%- endif -%}{%- endfor -%}",
)
_PIECES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ messages * 99999 }}",
    "{{ ''.__class__ }}", "{{ x }}", "{% set x = x ~ x %}", "|join", "|tojson", "|reverse", "(",
    "|e", "**99", "[::-1]", ".split()", ".replace('', 'xx')", "{% raw %}", "{#", "#}",
    "|groupby('role')", "|sum", "|batch(2)", ")", "{{", "%}", "-%}", "{% endfor %}", "not",
    ".format(1)", "%", "|center(9999999)", "{{ (x for x in x) }}", "|indent(99)", "loop", "self",
    "|list", "|map('upper')", "if",
)  # fmt: skip


def _of_template(data: bytes, rng: random.Random) -> bytes:
    if rng.randrange(3) == 0:
        return mutate.of_bytes(data, rng)
    text = data.decode(errors="replace")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        end = at if rng.randrange(2) else min(len(text), at + rng.randint(0, 12))
        text = text[:at] + rng.choice(_PIECES) + text[end:]
    return text.encode(errors="replace")


def _template(folder: Path) -> Reader:
    from edgetok.text.template import ChatTemplate

    messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Hello there! "},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]

    def read(data: bytes, _: Path) -> object:
        return ChatTemplate(data.decode(errors="replace"), {"bos_token": "<s>"}).render(messages)

    return Reader([text.encode() for text in _TEMPLATES], _of_template, read, costly=True)


def _gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(folder: Path) -> Reader:
    from edgetok.converter.read.gguf_architectures import architecture_of
    from edgetok.converter.read.gguf_tokenizer import tokenizer_files
    from edgetok.formats.gguf import open_gguf

    tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(30))]
    listed = struct.pack("<IQ", 8, len(tokens)) + b"".join(map(_gguf_text, tokens))
    scores = struct.pack("<IQ", 6, len(tokens)) + struct.pack(f"<{len(tokens)}f", *range(33))
    types = struct.pack("<IQ", 5, len(tokens)) + struct.pack("<33i", 2, 3, 3, *[1] * 30)
    fields: list[tuple[str, int, bytes]] = [
        ("general.architecture", 8, _gguf_text("llama")),
        ("llama.block_count", 4, struct.pack("<I", 1)),
        ("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        ("general.alignment", 4, struct.pack("<I", 32)),
        ("tokenizer.ggml.model", 8, _gguf_text("llama")),
        ("tokenizer.ggml.tokens", 9, listed),
        ("tokenizer.ggml.scores", 9, scores),
        ("tokenizer.ggml.token_type", 9, types),
    ]
    table = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields))
    table += b"".join(_gguf_text(name) + struct.pack("<I", k) + value for name, k, value in fields)
    table += _gguf_text("w") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    seed = table + bytes(-len(table) % 32) + bytes(96)

    def read(data: bytes, place: Path) -> object:
        path = place / "model.gguf"
        path.write_bytes(data)
        file = open_gguf(path)
        architecture_of(file)
        return tokenizer_files(file, 33)

    return Reader([seed], mutate.of_bytes, read, costly=True)


def _packed(folder: Path) -> Reader:
    from edgetok.converter.read.packed_checkpoint import PackedCheckpoint
    from edgetok.formats.checkpoint import open_checkpoint

    config = json.loads((SOURCE / "config.json").read_bytes())
    name = "model.layers.0.self_attn.q_proj"
    shapes = {"qweight": ("I32", [32, 64]), "qzeros": ("I32", [2, 8]), "scales": ("F16", [2, 64]),
              "g_idx": ("I32", [256])}  # fmt: skip
    header: dict[str, Any] = {}
    at = 0
    for part, (dtype, shape) in shapes.items():
        size = (2 if dtype == "F16" else 4) * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[f"{name}.{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    groups = struct.pack("<256i", *(i // 128 for i in range(256)))
    body = b"\1" * (at - len(groups)) + groups
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False,
                "desc_act": False, "checkpoint_format": "gptq"}  # fmt: skip
    seed = json.dumps({"config": config | {"quantization_config": settings}, "header": header})

    def read(data: bytes, place: Path) -> object:
        both = json.loads(data)
        text = json.dumps(both["header"]).encode("utf-8", "surrogatepass")
        (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        (place / "config.json").write_text(json.dumps(both["config"]))
        checkpoint = PackedCheckpoint(open_checkpoint(place))
        return checkpoint.tensor(f"{name}.weight")

    def damage(data: bytes, rng: random.Random) -> bytes:
        both = mutate.tree_of(data)
        part = both["header"] if rng.randrange(2) else both["config"]["quantization_config"]
        mutate.of_tree(part, rng)
        return json.dumps(both).encode()

    return Reader([seed.encode()], damage, read, costly=True)


def _onnx(folder: Path) -> Reader:
    from edgetok.formats import onnx_model

    data = (bundled_model() / "model.onnx").read_bytes()
    model = onnx_model.read_model(Path("model.onnx"), data)
    sizes = [node.ByteSize() for node in model.graph.node]
    assert sizes
    # One layer's worth: the whole file takes 20 ms.
    import onnx

    whole = onnx.ModelProto.FromString(data)
    del whole.graph.node[25:]
    del whole.graph.initializer[12:]
    small = whole.SerializeToString()

    def read(data: bytes, _: Path) -> object:
        return onnx_model.read_model(Path("model.onnx"), data)

    return Reader([small], mutate.of_protobuf, read, costly=True)


def _graph(folder: Path) -> Reader:
    """The graph of a small artefact whose manifest agrees, as an attacker would make it."""
    from edgetok.formats.artefact import open_artefact
    from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
    from edgetok.formats.manifest import write_manifest
    from tests.formats.small_artefact import FORMATS, SPEC
    from tests.rtn_artefact import random_tensors, write_artefact

    write_artefact(folder, SPEC, random_tensors(SPEC), FORMATS)
    seed = (folder / GRAPH_FILE).read_bytes()

    def read(data: bytes, _: Path) -> object:
        (folder / GRAPH_FILE).write_bytes(data)
        write_manifest(folder, names=(GRAPH_FILE, DATA_FILE))
        with open_artefact(folder) as artefact:
            return artefact.identity

    return Reader([seed], mutate.of_protobuf, read, costly=True)


def _manifest(folder: Path) -> Reader:
    from edgetok.formats.manifest import check_sizes, read_manifest

    @functools.cache
    def fill(place: Path) -> None:
        for path in bundled_model().iterdir():
            (place / path.name).write_bytes(path.read_bytes())

    def read(data: bytes, place: Path) -> object:
        fill(place)
        (place / "manifest.json").write_bytes(data)
        manifest = read_manifest(place)
        check_sizes(place, manifest)
        return manifest

    return Reader([(bundled_model() / "manifest.json").read_bytes()], mutate.of_json, read)


def _signed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def _of_container(data: bytes, rng: random.Random) -> bytes:
    """Damage a saved cache or chat; mostly its hash is right again."""
    from edgetok.formats.container import MAGIC

    if rng.randrange(8) == 0:
        return mutate.of_bytes(data, rng)
    return _signed(mutate.of_headed(data[:-32], rng, "<Q", len(MAGIC)))


def _saved(folder: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """A chat with its cache, and a prefix, as the bundled model writes them; and cache shapes."""
    import edgetok
    from edgetok.cache.state_file import SavedCache, cache_parts
    from edgetok.formats.container import write_container

    with edgetok.load(bundled_model()) as model:
        chat = model.new_chat(max_tokens=4)
        chat.send("Hello!").run()
        chat.save(folder / "talk")
        cache = model.backend.new_cache(64)
        tokens = model.tokenize("Once upon a time there was a cat.")
        model.backend.forward(cache, tokens)
        header, parts = cache_parts(SavedCache(tokens, cache.save()))
        write_container(folder / "prefix", model.artefact.identity, header, parts)
        identity = model.artefact.identity
    return (folder / "talk").read_bytes(), (folder / "prefix").read_bytes(), {"model": identity}


def _session(folder: Path) -> Reader:
    from edgetok.session import read_session

    talk, _, known = _saved(folder)

    def read(data: bytes, place: Path) -> object:
        path = place / "talk"
        path.write_bytes(data)
        return read_session(path, known["model"], 1 << 24)

    return Reader([talk], _of_container, read, costly=True)


def _prefix(folder: Path) -> Reader:
    """A state with a right hash and wrong contents, taken in by a real cache that then computes."""
    import edgetok
    from edgetok.cache.state_file import saved_cache
    from edgetok.formats.container import read_container

    _, prefix, known = _saved(folder)
    model = edgetok.load(bundled_model(), threads=1)

    def read(data: bytes, place: Path) -> object:
        path = place / "prefix"
        path.write_bytes(data)
        header, parts = read_container(path, known["model"], 1 << 24)
        saved = saved_cache(path, header, parts)
        cache = model.backend.new_cache(64)
        if saved.state.shape != cache.shape:
            raise SessionError(f"{path}: of another shape")
        cache.load(saved.state)
        if cache.length_tokens < 60:
            model.backend.forward(cache, [5])
        return cache.length_tokens

    return Reader([prefix], _of_container, read, costly=True)
