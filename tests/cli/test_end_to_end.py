"""Commands on a real, tiny, random model: converted, inspected, run in onnxruntime, measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from edgetok.cli.main import run
from edgetok.runtime.options import DEFAULT_WAIT_S
from tests.tiny import load_reference, tiny_checkpoint

ORT = ("--device", "onnxruntime")
TEXT = "the small dog and the little cat sat on the mat and then they ran to the sea. " * 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny") / "source")


@pytest.fixture(scope="module")
def exact(checkpoint: Path) -> Path:
    """Not quantised: the checkpoint's weights are 16-bit numbers, so nothing is lost."""
    out = checkpoint.parent / "exact"
    assert run(["convert", str(checkpoint), "--bits", "16", "--out", str(out), "--json"]) == 0
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def values(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        code = run([str(a) for a in arguments] + ["--json"])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        result: dict[str, Any] = json.loads(out)
        return result

    return values


def test_convert_and_inspect(checkpoint: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    report = call("convert", checkpoint, "--bits", 4, "--method", "rtn", "--out", out)
    assert report["out"] == str(out)
    assert report["bits"] == 4
    assert report["method"] == "rtn"
    result = call("inspect", out)
    assert result["spec"]["family"] == "llama"
    assert result["formats"]["layers.0.q_proj"] == {"bits": 4, "group_size": 32}
    assert result["weight_bytes"] == report["weight_bytes"]
    assert result["files"]["model.onnx.data"] == (out / "model.onnx.data").stat().st_size
    assert result["report"]["method"] == "rtn"


def test_eval_agrees_with_transformers(
    checkpoint: Path, exact: Path, tmp_path: Path, call: Any
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    result = call("eval", exact, "--text", text, "--reference", checkpoint, "--window", 48, *ORT)
    assert result.keys() >= {
        "perplexity",
        "tokens",
        "kl",
        "top1_agreement",
        "weight_bytes",
        "bits_per_weight",
    }
    assert result["perplexity"] == pytest.approx(result["reference_perplexity"], rel=1e-4)
    assert abs(result["kl"]) < 1e-6
    assert result["top1_agreement"] > 0.99
    # and the same by hand, in one window
    from edgetok.text.tokenizer import Tokenizer

    ids = Tokenizer.from_folder(checkpoint, 307).encode(TEXT)[:40]
    import torch

    with torch.inference_mode():
        logits = load_reference(checkpoint)(torch.tensor([ids])).logits[0].double()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    one = call("eval", exact, "--text", text, "--window", 64, "--max-tokens", 39, *ORT)
    assert one["tokens"] == 39
    assert one["perplexity"] == pytest.approx(math.exp(float(losses)), rel=1e-4)
    assert one["kl"] is None


def test_eval_against_a_gguf_file(tmp_path: Path, call: Any) -> None:
    """Its weights are rounded, so that it is another reference than the checkpoint."""
    pytest.importorskip("gguf")
    import torch

    from edgetok.text.tokenizer import Tokenizer
    from tests.converter.read.gguf_writer import write_gguf

    checkpoint = tiny_checkpoint("llama", tmp_path / "source", rope_scaling=None)
    exact = tmp_path / "exact"
    convert = ["convert", str(checkpoint), "--bits", "16", "--method", "rtn", "--out", str(exact)]
    assert run(convert) == 0
    held = write_gguf(checkpoint, tmp_path / "model.gguf", "BF16")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    arguments = ("--text", text, "--window", 64, "--max-tokens", 39, *ORT)
    result = call("eval", exact, "--reference", tmp_path / "model.gguf", *arguments)
    model = load_reference(checkpoint)
    tokens = torch.tensor([Tokenizer.from_folder(checkpoint, 307).encode(TEXT)[:40]])
    with torch.no_grad():
        ours = model(tokens).logits[0, :-1].double().log_softmax(-1)
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(held[name]))
        theirs = model(tokens).logits[0, :-1].double().log_softmax(-1)
    kl = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    losses = -theirs.gather(-1, tokens[0, 1:, None])
    assert kl > 1e-5
    assert result["kl"] == pytest.approx(kl, rel=0.02)
    assert result["reference_perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-4)


def test_eval_with_another_checkpoint(exact: Path, tmp_path: Path, capsys: Any) -> None:
    other = tiny_checkpoint("llama", tmp_path / "other", vocab_size=300)
    (tmp_path / "t.txt").write_text(TEXT)
    arguments = ["eval", exact, "--text", tmp_path / "t.txt", "--reference", other, *ORT]
    assert run([str(a) for a in arguments]) == 2
    assert "the reference knows 300 tokens, this model 307" in capsys.readouterr().err


def test_recall_that_fits_nowhere(exact: Path, capsys: Any) -> None:
    assert run(["eval", str(exact), "--recall", "--cases", "1", *ORT]) == 2
    assert "no case fits into a context of 64 tokens" in capsys.readouterr().err


def test_generate_is_greedy_decoding_of_transformers(
    checkpoint: Path, exact: Path, call: Any
) -> None:
    import torch

    result = call("generate", exact, "the small dog", "--temperature", 0, "--max-tokens", 20, *ORT)
    model = load_reference(checkpoint)
    from edgetok.text.tokenizer import Tokenizer

    prompt = Tokenizer.from_folder(checkpoint, 307).encode("the small dog")
    with torch.inference_mode():
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
    assert result["tokens"] == theirs[0, len(prompt) :].tolist()


def test_chat_is_the_template_and_greedy_decoding(checkpoint: Path, exact: Path, call: Any) -> None:
    import torch
    from transformers import AutoTokenizer

    result = call("chat", exact, "hello there", "--temperature", 0, "--max-tokens", 12, *ORT)
    prompt = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True
    )
    with torch.inference_mode():
        theirs = load_reference(checkpoint).generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    assert result["prompt_tokens"] == len(prompt)
    assert result["tokens"] == theirs[0, len(prompt) :].tolist()


def test_bench_keys(exact: Path, call: Any) -> None:
    sizes = ("--prompt-tokens", 16, "--decode-tokens", 2, "--depth", 4, "--depth", 20)
    assert run(["bench", str(exact), *map(str, sizes), "--repeats", "1"]) == 0  # compiles the loop
    result = call("bench", exact, *sizes, "--repeats", 1, "--threads", 1, *ORT)
    assert result.keys() == {
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "read_bandwidth_gb_per_s",
        "decode_bandwidth_share",
        "bytes_per_token",
        "load_s",
        "first_token_s",
        "peak_rss_mb",
        "anonymous_mb",
        "engine",
        "runs",
    }
    assert [run["depth_tokens"] for run in result["runs"]] == [4, 20]
    assert result["first_token_s"] >= result["load_s"] > 0
    weights = call("inspect", exact)
    embedding = 307 * 72 * 2
    run4 = result["runs"][0]
    cache = run4["bytes_per_token"] - (weights["weight_bytes"] - embedding)
    # 3 layers of keys and values of 2 heads in float32, 5 tokens in a cache of 22, padded dims
    assert 3 * 2 * 2 * 24 * 4 * 5 <= cache <= 3 * 2 * 2 * 32 * 4 * 5
    share = run4["decode_tokens_per_s"] * run4["bytes_per_token"]
    assert run4["decode_bandwidth_share"] == pytest.approx(
        share / run4["read_bandwidth_gb_per_s"] / 1e9
    )


def test_bench_of_chats(exact: Path, call: Any, capsys: Any) -> None:
    sizes = ["--chats", "3", "--prompt-tokens", "20", "--decode-tokens", "4", "--depth", "8"]
    options = [*sizes, "--repeats", "1", *ORT]
    result = call("bench", exact, *options)
    runs = result.pop("runs")
    assert runs == [result]
    assert result.keys() >= {
        "chats",
        "depth",
        "total_tokens_per_s",
        "single_tokens_per_s",
        "speedup",
        "wait_p95_ms",
        "python_ms_per_step",
    }
    assert (result["chats"], result["depth"], result["prompt_tokens"]) == (3, 8, 20)
    assert result["max_wait_s"] == DEFAULT_WAIT_S
    assert call("bench", exact, *options, "--max-wait", "0.4")["max_wait_s"] == 0.4
    assert run(["bench", str(exact), *options]) == 0
    assert "speedup" in capsys.readouterr().out
    assert run(["bench", str(exact), *options, "--profile"]) == 2
    assert "--chats conflicts with --profile" in capsys.readouterr().err
    assert run(["bench", str(exact), *ORT, "--max-wait", "0.4"]) == 2
    assert "--max-wait is measured with --chats; add it" in capsys.readouterr().err


def test_bench_refuses_what_does_not_fit(exact: Path, capsys: Any) -> None:
    assert run(["bench", str(exact), "--prompt-tokens", "100", *ORT]) == 2
    assert "the model's context is 64" in capsys.readouterr().err


def test_a_gpu_is_not_there(exact: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")
    assert run(["chat", str(exact), "hi", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "device is 'cuda', but" in err
    assert "use --device cpu" in err
    assert err.count("\n") == 1


def test_flipped_bytes_are_found(exact: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json", "report.json"):
        copy = tmp_path / name
        copy.mkdir()
        for path in exact.iterdir():
            data = bytearray(path.read_bytes())
            if path.name == name:
                data[len(data) // 2] ^= 1
            (copy / path.name).write_bytes(data)
        assert run(["verify", "--files-only", str(copy)]) == 2
        err = capsys.readouterr().err
        assert "hash mismatch" in err
        assert name in err
    assert run(["verify", "--files-only", str(exact)]) == 0
