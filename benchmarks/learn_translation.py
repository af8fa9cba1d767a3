"""Do the 2017 Transformer and Luong's network learn to translate? Against copying the source and looking phrases up.

    python benchmarks/learn_translation.py --minutes 30 --seeds 0 1 2 --threads 1 --out results/translation
        [--data libreoffice [FOLDER] | --data multi30k FOLDER] [--models transformer_2017 luong]

English to German. Every model reads the same batches of the same shared subwords, for equally many minutes. The curve
is BLEU of greedy translations of validation sentences over minutes of training; the test sentences are translated once,
at the end, greedily and by a beam of 4. Where a model looks is compared with a statistical aligner that learned from
the same training sentences (:mod:`regard.tasks.aligner`: the links that both directions agree on). Each run writes
FOLDER/<model>-seed<k>.json, from which ``draw_learning.py`` draws.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.models import LuongTranslator, Transformer
from regard.tasks.aligner import Agreement, Aligner, agreement, align_both
from regard.tasks.help_pages import libreoffice_help
from regard.tasks.parallel_text import ParallelSplit, read_parallel_folder, split_groups
from regard.tasks.phrase_lookup import PhraseLookup, copied
from regard.tasks.subwords import Subwords
from regard.tasks.translation import Translation
from regard.tasks.translation_scores import bleu, chrf
from regard.train.budget import rate_factor
from regard.train.recipe_2017 import LastCheckpoints, recipe_2017, smoothed_loss

VOCABULARY, LENGTH, BATCH = 4000, 64, 16
"""Shared subwords; the most of a sentence, longer ones are left out; a step has BATCH x LENGTH target tokens."""
DIM, HEADS, DEPTH, HIDDEN, WARMUP, FACTOR = 192, 4, 2, 768, 500, 0.5
"""Of the Transformer and its rate: the paper's schedule, lower and steeper for a run of some thousand steps. Without
dropout, which the paper has: nobody learns by heart in so few passes, and drawing it takes a seventh of the time."""
LUONG_DIM, LUONG_DEPTH, RATE, CLIP = 256, 1, 2e-3, 5.0
"""Of Luong's network: global attention ("general"), without input feeding, so that all steps run at once; Adam with a
cosine instead of the paper's SGD, which wants more passes over the data than there is time for."""

POINTS, VALIDATED, SHOWN = 8, 200, 8
CHECKPOINTS = 0.02
"""Share of the time between the checkpoints of which the last five are averaged."""

BAR, MARGIN = "phrase lookup", 3.0
"""Written before any run: a model has learned to translate if its mean test BLEU (beam of 4) is so much above that of
the phrase lookup, the stronger of both baselines: 3 BLEU are more than paired bootstraps of 1,000 sentences leave in
doubt (Koehn 2004 has about 1 to 2), and the seeds are to differ by less than that."""
ALIGNED = 0.2
"""Written before any run: attention agrees with the aligner if it hits linked words more often, by so much, than a
place drawn at random; what the diagonal hits is told beside it."""

MULTI30K = "published on test 2016, lower-cased and tokenised: about 38 to 40 BLEU (from memory, not verified)"


def load(data: list[str]) -> tuple[str, ParallelSplit]:
    """What it is called, and its parts."""
    name, *folder = data
    if name == "multi30k" and folder:
        return "translation, Multi30k", read_parallel_folder(folder[0], test="test_2016_flickr")
    if name == "libreoffice":
        return "translation", split_groups(libreoffice_help(folder[0] if folder else None))
    raise SystemExit("--data is libreoffice [FOLDER] or multi30k FOLDER")


def transformer(vocabulary: int) -> tuple[nn.Module, Callable[[float], float], float]:
    """The network, a step of its optimiser by the share of time spent, and how much its targets are smoothed."""
    model = Transformer(vocabulary, dim=DIM, num_heads=HEADS, depth=DEPTH, hidden=HIDDEN, dropout=0.0)
    optimizer, schedule = recipe_2017(model, DIM, WARMUP, factor=FACTOR)

    def step(spent: float) -> float:
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return spent

    return model, step, 0.1


def luong(vocabulary: int) -> tuple[nn.Module, Callable[[float], float], float]:
    """The same of Luong's network, whose targets are not smoothed."""
    model = LuongTranslator(vocabulary, dim=LUONG_DIM, depth=LUONG_DEPTH, alignment="global", input_feeding=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step(spent: float) -> float:
        optimizer.param_groups[0]["lr"] = RATE * rate_factor(spent)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return spent

    return model, step, 0.0


MODELS = {"transformer_2017": transformer, "luong": luong}


class Judge:
    """Baselines and references that do not change from run to run.

    Args:
        split: the sentences, of which the task judges some.
        subwords: of both languages.
    """

    def __init__(self, split: ParallelSplit, subwords: Subwords) -> None:
        self.split, self.subwords = split, subwords
        task = self.task(0)
        self.validation, self.test = (task.sentences(part) for part in ("validation", "test"))
        lookup = PhraseLookup(task.train.text)
        guesses = {
            "copying the source": copied(self.test.source),
            "phrase lookup": [lookup.translate(sentence) for sentence in self.test.source],
        }
        self.baselines = {name: bleu(found, self.test.target).value for name, found in guesses.items()}
        self.baselines_chrf = {name: chrf(found, self.test.target).value for name, found in guesses.items()}
        self.tokens = tuple(subwords.encode_all(side) for side in (self.test.source, self.test.target))
        forwards = Aligner.train(task.train.source, task.train.target)
        backwards = Aligner.train(task.train.target, task.train.source)
        self.links = align_both(self.tokens[0], self.tokens[1], forwards, backwards)

    def task(self, seed: int) -> Translation:
        """The training batches of a seed."""
        return Translation(self.split, self.subwords, LENGTH, BATCH, seed, beyond="leave_out")

    def validate(self, model: nn.Module, task: Translation) -> float:
        """BLEU of greedy translations of some validation sentences."""
        some = range(0, len(self.validation), max(1, len(self.validation) // VALIDATED))
        sources, targets = ([side[n] for n in some] for side in (self.validation.source, self.validation.target))
        return bleu(task.translate(model, sources), targets).value

    def aligned(self, model: nn.Module, task: Translation) -> Agreement:
        """Where the model looks while it reads the true translations; the end of the source is linked with nothing."""
        weights = [
            task.align(model.eval(), source, target)[: len(target)]
            for source, target in zip(self.test.source, self.tokens[1], strict=True)
        ]
        links = [torch.nn.functional.pad(one, (0, 1)) for one in self.links]
        return agreement(weights, links)


def learn(what: str, name: str, seed: int, minutes: float, threads: int, judge: Judge) -> dict[str, Any]:
    """One run, as it is written."""
    torch.manual_seed(seed)
    task = judge.task(seed)
    model, update, smoothing = MODELS[name](task.vocab_size)
    curve, seconds, steps, checkpoints = [[0.0, judge.validate(model, task)]], 0.0, 0, LastCheckpoints()
    saved = 1.0 - 5 * CHECKPOINTS
    while seconds < 60 * minutes:
        began = time.perf_counter()
        loss = forward(model.train(), task, steps, smoothing)
        loss.backward()
        spent = update(seconds / (60 * minutes))
        steps, seconds = steps + 1, seconds + time.perf_counter() - began
        if name == "transformer_2017" and spent >= saved:
            checkpoints.add(model)
            saved += CHECKPOINTS
        if seconds >= 60 * minutes * len(curve) / POINTS:
            curve.append([seconds / 60, judge.validate(model, task)])
            print(f"{name} seed {seed}: {curve[-1][0]:.1f} min, {steps:,} steps, BLEU {curve[-1][1]:.1f}", flush=True)
    if len(checkpoints):
        model.load_state_dict(checkpoints.average())
    test, samples = examine(model, task, judge)
    return {
        "what": what,
        "model": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metric": "BLEU",
        "lower_is_better": False,
        "minutes": minutes,
        "threads": threads,
        "steps": steps,
        "passes": steps / task.steps_a_pass,
        "sentences": {part: sizes[0] for part, sizes in task.sizes().items()},
        "curve": curve,
        "test": test,
        "baselines": judge.baselines,
        "baselines chrF": judge.baselines_chrf,
        "bar": BAR,
        "margin": MARGIN,
        "alignment margin": ALIGNED,
        "digest": judge.split.digest,
        "samples": samples,
    }


def forward(model: nn.Module, task: Translation, number: int, smoothing: float) -> Tensor:
    """The loss of a step."""
    batch = task.batch(number)
    logits = model(batch.context, batch.tokens, src_mask=batch.context_mask, tgt_mask=batch.key_mask)
    return smoothed_loss(logits, batch.targets, batch.key_mask, smoothing)


def examine(model: nn.Module, task: Translation, judge: Judge) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the test sentences become, and a few of them to be shown with where the model looked."""
    found = {
        "greedy": task.translate(model, judge.test.source),
        "beam 4": task.translate(model, judge.test.source, beams=4),
    }
    scores = {way: bleu(sentences, judge.test.target) for way, sentences in found.items()}
    looked = judge.aligned(model, task)
    test = {
        "BLEU": scores["beam 4"].value,
        "BLEU, greedy": scores["greedy"].value,
        "BLEU, lower-cased": bleu(found["beam 4"], judge.test.target, lowercase=True).value,
        "chrF": chrf(found["beam 4"], judge.test.target).value,
        "chrF, greedy": chrf(found["greedy"], judge.test.target).value,
        "signature": scores["beam 4"].signature,
        "alignment": looked.share,
        "alignment by chance": looked.chance,
        "alignment of the diagonal": looked.diagonal,
        "alignment agrees": looked.share >= looked.chance + ALIGNED,
    }
    samples: list[dict[str, Any]] = []
    for n in range(0, len(judge.test), max(1, len(judge.test) // SHOWN)):
        target = judge.subwords.encode(found["beam 4"][n])
        weights = task.align(model, judge.test.source[n], target)
        samples.append(
            {
                "source": judge.test.source[n],
                "truth": judge.test.target[n],
                "greedy": found["greedy"][n],
                "beam 4": found["beam 4"][n],
                "source pieces": [*judge.subwords.pieces(judge.tokens[0][n]), "end"],
                "target pieces": [*judge.subwords.pieces(target), "end"],
                "weights": [[round(w, 3) for w in row] for row in weights.tolist()],
            }
        )
    return test, samples


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", nargs="+", default=["libreoffice"])
    parser.add_argument("--out", type=Path, default=Path("results/translation"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    what, split = load(given.data)
    subwords = Subwords.train([*split.train.source, *split.train.target], size=VOCABULARY)
    judge = Judge(split, subwords)
    print(", ".join(f"{name} {value:.1f} BLEU" for name, value in judge.baselines.items()), flush=True)
    if given.data[0] == "multi30k":
        print(MULTI30K)
    for seed in given.seeds:
        for name in given.models:
            result = learn(what, name, seed, given.minutes, given.threads, judge)
            (given.out / f"{name}-seed{seed}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
