"""Train the default model; kill it at any time, the same command goes on where it stopped.

    python training/train.py --out checkpoints/default --tokenizer models/default

Writes to the folder: `state.pt` (weights, averaged weights, optimizer, step) and `log.jsonl` (one
line every 20 steps, drawn by `card/html.py`). The curriculum is `schedule.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import prior
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mixture import Batches
from model import Decoder, ModelConfig, from_hf
from muon import Muon
from safetensors.torch import load_file
from schedule import BATCH_TOKENS, SEED, at

LR_MATRIX, LR_OTHER = 0.01, 2e-3
WARMUP_STEPS = 150
DECAY = 0.1  # of the matrices; times the rate
AVERAGE = 0.99  # weights are averaged over about 100 steps; that stands in for a decay


def build(config: ModelConfig) -> tuple[Decoder, Muon]:
    """Return the model and its optimizer: Muon on the layers' matrices, AdamW on the rest."""
    model = Decoder(config)
    matrices, rest = [], []
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and name != "embed" else rest).append(p)
    groups = [
        {"params": matrices, "muon": True, "base": LR_MATRIX, "decay": DECAY},
        {"params": rest, "muon": False, "base": LR_OTHER, "decay": 0.0},
    ]
    return model, Muon(groups)


def save(path: Path, state: dict) -> None:
    """Write aside, then rename: a killed run leaves the old file or the new one, never half."""
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)


def mean_gradients(model: Decoder, weight: float, workers: int) -> None:
    """Gradients of all workers added and divided by all weights, as one flat message."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([*(g.flatten() for g in grads), torch.tensor([weight])])
    if workers > 1:
        dist.all_reduce(flat)
    flat /= flat[-1].clone()
    for g, part in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def run(rank: int, args: argparse.Namespace) -> None:
    """One worker: its share of the rows of every batch, the same update as the others.

    A worker is one thread: on a machine that others use too, one thread waiting for another
    after every operator costs 40 % of the speed.
    """
    torch.set_num_threads(1)
    if args.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.meet}", rank=rank, world_size=args.workers
        )
    config = ModelConfig()
    torch.manual_seed(SEED)
    model, opt = build(config)
    prior.install(model, SEED)
    if args.weights:
        model.load_state_dict(from_hf(load_file(args.weights / "model.safetensors"), config))
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    batches = Batches(args.tokenizer / "tokenizer.json", BATCH_TOKENS, SEED)
    step, tokens = args.tokens // BATCH_TOKENS, args.tokens
    seconds = 0.0
    first = step if args.weights else 0  # a fresh optimizer has to warm up
    path = args.out / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["optimizer"])
        for group in opt.param_groups:  # rates are the recipe's, not the checkpoint's
            group["base"] = LR_MATRIX if group["muon"] else LR_OTHER
            group["decay"] = DECAY if group["muon"] else 0.0
        average, step, tokens = state["average"], state["step"], state["tokens"]
        seconds = state["seconds"]
        first = state.get("first", 0)
    began = time.monotonic() - seconds
    saved = time.monotonic()
    losses: list[float] = []
    parent = os.getppid()
    while (now := at(tokens)) is not None and (args.workers == 1 or os.getppid() == parent):
        stage, factor = now
        for group in opt.param_groups:
            group["lr"] = group["base"] * factor * min(1.0, (step - first + 1) / WARMUP_STEPS)
        ids, weights = batches.batch(stage, step, rank, args.workers)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(torch.from_numpy(ids), torch.from_numpy(weights), 1.0)
        loss.backward()
        mean_gradients(model, float(weights.sum()), args.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        tokens += BATCH_TOKENS
        if rank:
            continue
        with torch.no_grad():
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - AVERAGE)
        losses.append(loss.item() / float(weights.sum()))
        clock = time.monotonic()
        if step % 20 == 0:
            line = {
                "step": step,
                "tokens": tokens,
                "stage": stage.name,
                "loss": round(sum(losses) / len(losses), 4),
                "lr": round(factor, 4),
                "seconds": round(clock - began, 1),
            }
            losses.clear()
            with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if clock - saved > args.save_seconds or at(tokens) is None:
            saved = clock
            save(
                path,
                {
                    "model": model.state_dict(),
                    "average": average,
                    "optimizer": opt.state_dict(),
                    "step": step,
                    "first": first,
                    "tokens": tokens,
                    "seconds": clock - began,
                },
            )


def main() -> None:
    """Start the workers and run until the schedule ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--weights", type=Path, help="begin with this Hugging Face folder")
    parser.add_argument("--tokens", type=int, default=0, help="and at this place of the schedule")
    parser.add_argument("--save-seconds", type=float, default=120)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.meet = (args.out / "workers").resolve()
    args.meet.unlink(missing_ok=True)
    if args.workers == 1:
        run(0, args)
    else:
        mp.spawn(run, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
