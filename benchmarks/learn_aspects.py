"""Does a context help a small BERT to answer questions about a text? SentiHood or SemEval-2014, from the user's files.

A :class:`regard.models.ContextGuidedBert` from scratch, a word a token, for some minutes, three times: "plain" is told
the question by an embedding that is added to every token, "mixed" (CG-BERT) and "quasi" (QACG-BERT) by their attention.
All have the same sizes and the same training; the attentions with a context have a few more weights. The bar is
logistic regression on bags of words, with weights of its own for each question and a decay chosen on validation.

    python benchmarks/learn_aspects.py --data sentihood-train.json sentihood-dev.json sentihood-test.json --minutes 5
    python benchmarks/learn_aspects.py --data Restaurants_Train.xml Restaurants_Test_Gold.xml --minutes 5

The published models start from a BERT that has read billions of words (arXiv:2010.07523: about 80 % aspect strict
accuracy and 94 % sentiment accuracy on SentiHood, from memory and not verified); these runs start from nothing.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.models import ContextGuidedBert
from regard.tasks.aspect_scores import aspect_scores
from regard.tasks.aspect_words import AspectBatches, bag_of_words, majority
from regard.tasks.aspects import AspectData, example_data, read_published

METRICS = {"SemEval-2014 restaurants": "aspect F1"}
METRIC = "aspect macro F1"
BAR = "bag of words"
MARGIN = 0.03
"""Of F1 on the test part, above the bag of words, for the mean of the seeds; fixed before the runs that count."""

KINDS = ("plain", "mixed", "quasi")
SIZES = {"dim": 64, "depth": 2, "num_heads": 4, "max_length": 176}
RATE, WARM_UP, BATCH, DROPOUT = 1e-3, 200, 32, 0.2
DECAYS = (1e-4, 3e-4, 1e-3)
POINTS = 10
"""How often the validation part is answered; the clock of training stands still meanwhile."""


def answers(model: nn.Module, batches: AspectBatches, part: str) -> Tensor:
    """The probability of each answer to each question of a part."""
    model.eval()
    with torch.no_grad():
        found = [
            model(batch.tokens, batch.context, key_mask=batch.key_mask).softmax(-1) for batch in batches.held_out(part)
        ]
    return torch.cat(found)


def figures(batches: AspectBatches, part: str, chances: Tensor) -> dict[str, float]:
    """The published figures of a part."""
    return aspect_scores(batches.data, batches.labels(part), chances)


def baselines(batches: AspectBatches, metric: str) -> dict[str, dict[str, float]]:
    """What the test part scores without attention."""
    by_decay = {
        decay: figures(batches, "validation", bag_of_words(batches, "validation", decay=decay))[metric]
        for decay in DECAYS
    }
    best = max(by_decay, key=by_decay.__getitem__)
    return {
        "majority": figures(batches, "test", majority(batches, "test")),
        BAR: figures(batches, "test", bag_of_words(batches, "test", decay=best)),
    }


def widen(model: ContextGuidedBert) -> None:
    """BERT draws its matrices from N(0, 0.02^2) for 768 features; fewer need larger ones for sums of the same size."""
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if weight.ndim == 2 and "context_" not in name and "gate_" not in name:
                weight.mul_((768 / SIZES["dim"]) ** 0.5)


def run(kind: Any, seed: int, minutes: float, batches: AspectBatches, others: dict[str, Any]) -> dict[str, Any]:
    """Train one model; the weights that were best on the validation part answer the test part."""
    torch.manual_seed(seed)
    data, metric = batches.data, METRICS.get(batches.data.name, METRIC)
    counts = {"num_contexts": len(data.contexts), "num_labels": len(data.labels)}
    model = ContextGuidedBert(len(batches.words), **SIZES, **counts, kind=kind, dropout=DROPOUT)
    widen(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    rows = batches.train(BATCH, torch.Generator().manual_seed(seed))
    curve = [[0.0, figures(batches, "validation", answers(model, batches, "validation"))[metric]]]
    best, kept = curve[0][1], {name: t.clone() for name, t in model.state_dict().items()}
    spent, steps = 0.0, 0
    while spent < minutes:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / WARM_UP, max(0.02, 1.0 - spent / minutes) / 0.5)
        batch = next(rows)
        scores = model.train()(batch.tokens, batch.context, key_mask=batch.key_mask)
        optimizer.zero_grad()
        F.cross_entropy(scores, batch.targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        spent += (time.perf_counter() - start) / 60
        if spent >= minutes * len(curve) / POINTS:
            value = figures(batches, "validation", answers(model, batches, "validation"))[metric]
            curve.append([spent, value])
            if value > best:
                best, kept = value, {name: t.clone() for name, t in model.state_dict().items()}
            print(f"{kind}, seed {seed}, {spent:.2f} min, step {steps}: {metric} {value:.4f}", flush=True)
    model.load_state_dict(kept)
    chances = answers(model, batches, "test")
    return {
        "what": f"aspects of {data.name}",
        "model": f"ContextGuidedBert, {kind}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": seed,
        "metric": metric,
        "lower_is_better": False,
        "minutes": spent,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "curve": curve,
        "test": figures(batches, "test", chances),
        "baselines": {name: found[metric] for name, found in others.items()},
        "baseline figures": others,
        "bar": BAR,
        "margin": MARGIN,
        "samples": samples(data, chances),
    }


def samples(data: AspectData, chances: Tensor) -> list[str]:
    """The first test questions about something that is there, with the answer of the model."""
    found: list[str] = []
    for asked, row in zip(data.test, chances, strict=True):
        if asked.label != data.none and len(found) < 8:
            question, answer = data.contexts[asked.context], data.labels[int(row.argmax())]
            found.append(f"{asked.text} | {question}: {data.labels[asked.label]}, answered {answer}")
    return found


def main() -> None:
    """One file for each kind and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="the files of SentiHood or of SemEval-2014; otherwise a toy")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--truncate", action="store_true", help="cut texts that are longer than the model")
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = read_published(given.data) if given.data else example_data()
    batches = AspectBatches(data, SIZES["max_length"], truncate=given.truncate)
    print(
        f"{data.name}: {len(data.train):,} questions, {len(batches.words):,} words, {batches.truncated} texts were cut"
    )
    others = baselines(batches, METRICS.get(data.name, METRIC))
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for kind in given.kinds:
            result = run(kind, seed, given.minutes, batches, others)
            name = f"aspects-{data.name.split()[0].lower()}-{kind}-seed{seed}.json"
            (given.out / name).write_text(json.dumps(result, indent=1, ensure_ascii=False), "utf-8")
            print(f"{kind}, seed {seed}: {result['test']}\n  {result['baselines']}", flush=True)


if __name__ == "__main__":
    main()
