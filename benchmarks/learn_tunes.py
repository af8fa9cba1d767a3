"""Does a Jukebox prior learn to write tunes? Bits per character of held-out tunes, against n-grams and xz.

    python benchmarks/learn_tunes.py --minutes 8 --seeds 0 1 2 --threads 1 --out results/tunes [--data FOLDER]

Tunes of :mod:`regard.tasks.tunes`; the prior is alone, without sound. The curve is bits per character of the
validation part over minutes of training; the test part is asked once, at the end. Each run writes
FOLDER/jukebox_prior-seed<k>.json, with tunes that the model wrote, and how many of them are well formed beside printed
tunes and those of a trigram.
"""

import argparse
import json
from pathlib import Path
from typing import Any, cast

import torch

from regard.models.code_prior import CodePrior
from regard.tasks.tune_faults import figures
from regard.tasks.tunes import Tunes, compose_tunes, corpus, ngram_tunes, split_tunes
from regard.train.budget import Budget
from regard.train.trainer import Trainer

NAME = "jukebox_prior"
DIM, DEPTH, HEADS, BATCH, RATE = 128, 6, 4, 4, 2e-3
OPTIONS: dict[str, Any] = {"row_length": 24, "attention_ratio": 1.0, "mlp_ratio": 2.0, "init_scale": 2.0}
POINTS = 16
"""Of the curve."""
BAR, MARGIN = "trigram", 0.3
"""Written before any run: the prior has learned if its mean of test bits per character is so much below those of a
trigram with Witten-Bell smoothing, and the seeds differ by less than that."""
SHOWN, WRITTEN = 3, 64
TEMPERATURE = 0.9


def learn(task: Tunes, seed: int, minutes: float, threads: int, known: dict[str, Any]) -> dict[str, Any]:
    """One run, as it is written."""
    torch.manual_seed(seed)
    model = cast(CodePrior, task.model(DIM, DEPTH, HEADS, **OPTIONS))
    trainer = Trainer(model, task, Budget(seconds=60 * minutes), rate=RATE, device="cpu")
    curve = [[0.0, trainer.judge("validation").quality]]
    while trainer.spent < 1:
        trainer.step()
        if trainer.spent >= len(curve) / POINTS:
            curve.append([trainer.progress.seconds / 60, trainer.judge("validation").quality])
            spent, steps = trainer.progress.seconds / 60, trainer.progress.steps
            print(f"{NAME} seed {seed}: {spent:.1f} min, {steps:,} steps, {curve[-1][1]:.3f}", flush=True)
    found = trainer.judge("test")
    written = compose_tunes(model, WRITTEN, temperature=TEMPERATURE, generator=torch.Generator().manual_seed(seed))
    return {
        "what": "tunes as characters",
        "model": NAME,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metric": "bits per character",
        "lower_is_better": True,
        "minutes": minutes,
        "threads": threads,
        "steps": trainer.progress.steps,
        "curve": curve,
        "test": {"bits per character": found.quality},
        "baselines": known["baselines"],
        "bar": BAR,
        "margin": MARGIN,
        "written": {"this prior": figures(written), **known["written"]},
        "samples": written[:SHOWN],
    }


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder like music21's corpus; default: the installed package")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/tunes"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    split = split_tunes(corpus(given.data))
    task = Tunes(split, batch=BATCH)
    trigram = ngram_tunes(task.ngram(3), WRITTEN, task.length, generator=torch.Generator().manual_seed(0))
    printed = [tune.data.decode("ascii") for tune in split.test]
    known = {
        "baselines": task.baselines(),
        "written": {"printed tunes of the test part": figures(printed), "trigram": figures(trigram)},
    }
    for seed in given.seeds:
        task = Tunes(split, batch=BATCH, seed=seed)
        result = learn(task, seed, given.minutes, given.threads, known)
        (given.out / f"{NAME}-seed{seed}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
