"""Do gates find the heads that a model can do without? Against as many heads taken out at random, or by their gradient.

A byte-level :class:`regard.models.TransformerLM` of 32 heads learns the annual messages of US presidents for some
minutes. Then copies of it are fine-tuned for half as many steps, one with gates for each weight of the penalty
(Voita et al. 2019, arXiv:1905.09418; :func:`regard.inspect.gate_heads`), after which the closed heads are removed. As
many heads are removed from other copies before the same fine-tuning: drawn at random, or those of the smallest
importance by gradient (Michel et al. 2019, arXiv:1905.10650). The whole model, fine-tuned alike, stands beside them.

    python benchmarks/learn_pruning.py --seeds 0 1 2 --minutes 2 --threads 1 --out results

The curve is that of the fine-tuning with gates; the test part is asked once for each model, at the end.
"""

import argparse
import copy
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.inspect import HeadGates, gate_heads, head_importance, prune_heads
from regard.inspect.headed import attentions
from regard.tasks.corpora import sotu
from regard.tasks.language import LanguageModelling
from regard.tasks.split import split_documents
from regard.tasks.task import Batch
from regard.train.budget import Budget
from regard.train.trainer import Trainer

LENGTH, BATCH, DIM, DEPTH, HEADS = 128, 16, 128, 4, 8
RATE, TUNING_RATE, GATE_RATE = 3e-3, 5e-4, 0.05
WEIGHTS = (0.01, 0.03)
TUNING, POINTS, MEASURED = 0.5, 8, 16
"""Steps of fine-tuning for each of training; points of the curve; batches on which the importance is measured."""
BAR, MARGIN = "as many heads at random", 0.02
"""Bits per byte; written down before any run that counts."""


def fine_tune(model: nn.Module, task: LanguageModelling, steps: int, first: int, gates: HeadGates | None = None) -> Any:
    """Train further, from batch ``first`` on, at a rate that falls to 0.

    Returns:
        [[minutes, validation value], ...]
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()) if gates is None else gates.others()}]
    if gates is not None:
        groups.append({"params": gates.parameters(), "weight_decay": 0.0, "lr": GATE_RATE})
    optimizer = torch.optim.AdamW(groups, lr=TUNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def falling(step: int) -> float:
        return 1 - step / steps

    def steady(step: int) -> float:
        return 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [falling, steady][: len(groups)])
    curve, spent = [[0.0, judged(model, task, "validation")]], 0.0
    model.train()
    for step in range(steps):
        start = time.perf_counter()
        batch = task.batch(first + step)
        loss = task.loss(model(batch.tokens), batch)
        loss = loss if gates is None else loss + gates.penalty()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(groups[0]["params"], 1.0)
        optimizer.step()
        schedule.step()
        spent += (time.perf_counter() - start) / 60
        if (step + 1) * POINTS // steps > step * POINTS // steps:
            curve.append([spent, judged(model, task, "validation")])
            model.train()
    return curve


def judged(model: nn.Module, task: LanguageModelling, part: Any) -> float:
    """Bits per byte."""
    model.eval()
    with torch.no_grad():
        found = [
            (task.scores(model(each.tokens), each).sum().item(), sum(each.amounts)) for each in task.held_out(part)
        ]
    return sum(bits for bits, _ in found) / sum(amount for _, amount in found)


def without(whole: nn.Module, gone: Collection[tuple[str, int]]) -> nn.Module:
    """A copy that lacks some heads."""
    model = copy.deepcopy(whole)
    prune_heads(model, {name: [head for other, head in gone if other == name] for name in attentions(whole)})
    return model


def least_important(whole: nn.Module, task: LanguageModelling, count: int, first: int) -> list[tuple[str, int]]:
    """The heads of the smallest importance; layers are made comparable as in the paper."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return task.loss(model(batch.tokens), batch)

    found = head_importance(whole, [task.batch(first + n) for n in range(MEASURED)], loss, normalise=True)
    every = [(value, name, head) for name, values in found.items() for head, value in enumerate(values.tolist())]
    return [(name, head) for _, name, head in sorted(every)[:count]]


def run(seed: int, minutes: float) -> list[dict[str, Any]]:
    """Train one model, and fine-tune its copies."""
    torch.manual_seed(seed)
    task = LanguageModelling(split_documents(sotu(), LENGTH), length=LENGTH, batch=BATCH, seed=seed)
    whole = task.model(DIM, DEPTH, HEADS, "full")
    trainer = Trainer(whole, task, Budget(seconds=60 * minutes), rate=RATE, device="cpu")
    while trainer.spent < 1:
        trainer.step()
    first = trainer.progress.steps
    steps = max(1, round(TUNING * first))
    tuned = copy.deepcopy(whole)
    fine_tune(tuned, task, steps, first)
    everything = judged(tuned, task, "test")
    results: list[dict[str, Any]] = []
    for weight in WEIGHTS:
        model = copy.deepcopy(whole)
        gates = gate_heads(model, weight=weight)
        curve = fine_tune(model, task, steps, first, gates)
        left = prune_heads(model, gates)
        removed = DEPTH * HEADS - sum(map(len, left.values()))
        every = [(name, head) for name in left for head in range(HEADS)]
        drawn = [every[number] for number in torch.randperm(len(every))[:removed].tolist()]
        rivals = {BAR: drawn, "as many by gradient": least_important(whole, task, removed, first)}
        baselines = {"whole": everything}
        for name, gone in rivals.items():
            rival = without(whole, gone)
            fine_tune(rival, task, steps, first)
            baselines[name] = judged(rival, task, "test")
        test = judged(model, task, "test")
        print(
            f"seed {seed}, weight {weight}: {removed} heads removed, {test:.3f} bits per byte; {baselines}", flush=True
        )
        results.append(
            {
                "what": f"pruning heads of a language model, weight {weight}",
                "model": "gates",
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "seed": seed,
                "metric": "bits per byte",
                "lower_is_better": True,
                "minutes": curve[-1][0],
                "threads": torch.get_num_threads(),
                "steps": steps,
                "curve": curve,
                "test": {"bits per byte": test, "heads left": DEPTH * HEADS - removed},
                "baselines": baselines,
                "bar": BAR,
                "margin": MARGIN,
                "samples": [f"{name}: heads {', '.join(map(str, heads)) or 'none'}" for name, heads in left.items()],
            }
        )
    return results


def main() -> None:
    """One file for each seed and weight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for result in run(seed, given.minutes):
            name = f"pruning-{result['model'].rpartition(' ')[2]}-seed{seed}.json"
            (given.out / name).write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
