"""Does the hybrid of CTC and attention learn to write down real speech, from minutes of it, in minutes on one core?

    python benchmarks/learn_speech.py --minutes 10 --seeds 0 1 2 --threads 1 --out results/speech
        [--runs en cs en-local] [--english FOLDER] [--czech FOLDER]

English: Asterisk's prompts, 551 recordings of one speaker. Czech: the dialogues of Fish Fillets, 1,606 recordings of
several. Folders are those that the Debian packages were unpacked into; without them the installed ones are taken. The
recipe is that of ``regard transcribe``. The curve is the character error rate of the greedy reading of the validation
part over minutes of training; the test part, whose texts are said nowhere else, is asked once, at the end, by all
searches. "local" attends to windows of a second or so to both sides. Each run writes FOLDER/<run>-seed<k>.json, from
which ``draw_learning.py`` draws.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from regard.cli.speech_model import OPTIONS, RATE, SIZES, make_task
from regard.models.language_models import NGram
from regard.models.speech_recognizer import SpeechRecognizer
from regard.models.transcribing import Method, transcribe
from regard.tasks.error_rates import error_rates
from regard.tasks.speech import Speech
from regard.tasks.speech_baselines import speech_baselines
from regard.tasks.speech_data import INSTALLED, asterisk, fillets
from regard.train.budget import Budget
from regard.train.trainer import Trainer

RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "en": ("English", "full", {}),
    "cs": ("Czech", "full", {}),
    "en-local": ("English", "local", {"window": 25}),
}
SOURCES = {"English": asterisk, "Czech": fillets}
POINTS = 16
"""Of the curve."""
BAR, MARGIN = "best without hearing", 0.15
"""Written before the runs, after a first look at short trials: it has learned if its mean character error rate on the
test part is so much below the best of what can be written without hearing (:mod:`regard.tasks.speech_baselines`), and
the seeds differ by less than that."""
ORDER, LANGUAGE_WEIGHT, LENGTH_BONUS, BEAMS, JOINT_WEIGHT = 5, 0.3, 0.5, 8, 0.5
"""Of the n-grams over characters of the training texts, and of the searches; not tuned."""
SEARCHES: dict[str, tuple[Method, bool]] = {
    "greedy": ("greedy", False),
    "prefix beam": ("beam", False),
    "prefix beam, n-grams": ("beam", True),
    "attention alone": ("attention", False),
    "joint": ("joint", False),
}
SHOWN = 8


def searched(model: SpeechRecognizer, task: Speech) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Error rates on the test part by every search, and the first texts."""
    prompts = task.parts["test"]
    truths = [prompt.text for prompt in prompts]
    texts = [task.alphabet.encode(prompt.text) for prompt in task.parts["train"]]
    ngram = NGram.fit(texts, num_labels=task.vocab_size, order=ORDER)
    rates: dict[str, float] = {}
    shown: list[dict[str, str]] = [{"truth": truth} for truth in truths[:SHOWN]]
    for name, (method, fused) in SEARCHES.items():
        options: dict[str, Any] = {"method": method, "beams": BEAMS, "ctc_weight": JOINT_WEIGHT}
        if fused:
            options |= {"language_model": ngram, "language_weight": LANGUAGE_WEIGHT, "length_bonus": LENGTH_BONUS}
        start = time.perf_counter()
        found = [transcribe(model, task.frames(prompt)[None], **options)[0].labels for prompt in prompts]
        heard = [task.alphabet.decode(labels) for labels in found]
        rates[f"CER {name}"], rates[f"WER {name}"] = error_rates(truths, heard)
        print(f"  {name}: CER {rates[f'CER {name}']:.3f}, {time.perf_counter() - start:.1f} s", flush=True)
        for row, text in zip(shown, heard, strict=False):
            row[name] = text
    return rates, shown


def learn(run: str, seed: int, minutes: float, threads: int, folders: dict[str, Path]) -> dict[str, Any]:
    """One run, as it is written."""
    language, mechanism, options = RUNS[run]
    task, title = make_task(SOURCES[language](folders[language]), seed=seed)
    torch.manual_seed(seed)
    model = task.model(**{**SIZES, "mechanism": mechanism}, **OPTIONS, **options)
    assert isinstance(model, SpeechRecognizer)
    trainer = Trainer(model, task, Budget(seconds=60 * minutes), rate=RATE, device="cpu")
    curve = [[0.0, trainer.judge("validation").quality]]
    while trainer.spent < 1:
        trainer.step()
        if trainer.spent >= len(curve) / POINTS:
            curve.append([trainer.progress.seconds / 60, trainer.judge("validation").quality])
            told = f"{curve[-1][0]:.1f} min, {trainer.progress.steps:,} steps, {curve[-1][1]:.3f}"
            print(f"{run} seed {seed}: {told}", flush=True)
    rates, shown = searched(model.eval(), task)
    baselines = speech_baselines(task)
    return {
        "what": f"speech recognition, {language}",
        "model": mechanism,
        "data": title,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metric": "character error rate",
        "lower_is_better": True,
        "minutes": minutes,
        "threads": threads,
        "steps": trainer.progress.steps,
        "curve": curve,
        "test": {"character error rate": rates["CER greedy"], "word error rate": rates["WER greedy"], **rates},
        "baselines": {**baselines, BAR: min(baselines.values())},
        "bar": BAR,
        "margin": MARGIN,
        "samples": shown,
    }


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["en", "cs"], choices=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/speech"))
    parser.add_argument("--english", type=Path, default=INSTALLED)
    parser.add_argument("--czech", type=Path, default=INSTALLED)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    folders = {"English": given.english, "Czech": given.czech}
    for seed in given.seeds:
        for run in given.runs:
            result = learn(run, seed, given.minutes, given.threads, folders)
            (given.out / f"{run}-seed{seed}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
