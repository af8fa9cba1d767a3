"""Does MAC learn to reason about images? Against a CNN and an LSTM side by side, and an LSTM that sees no image.

    python benchmarks/learn_vqa.py --minutes 8 --seeds 0 1 2 --threads 1 --out results/vqa [--models mac cnn_lstm lstm]

Questions of :mod:`regard.tasks.reasoning`; every model trains equally long with the same batches, optimiser and peak
rate. The curve is accuracy on the validation part over minutes of training; the test part is asked once, at the end.
Each run writes FOLDER/<model>-seed<k>.json, from which ``draw_learning.py`` draws.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.models.mac_network import Classifier, ImageStem
from regard.models.question_encoder import QuestionEncoder
from regard.tasks.reasoning import Reasoning
from regard.tasks.scene_questions import ANSWERS, WORDS
from regard.tasks.scenes import SIDE
from regard.train.budget import Budget
from regard.train.trainer import Trainer

DIM, STEPS, BATCH, RATE = 64, 4, 64, 2e-3
POINTS = 16
"""Of the curve."""
BAR, MARGIN = "cnn_lstm", 0.05
"""Written before any run: MAC has learned if its mean test accuracy is so much above that of the CNN and the LSTM, and
the seeds of neither differ by more than that."""
SHOWN = 8


class CNNAndLSTM(nn.Module):
    """The image as one vector, by the same convolutions as in MAC, the question as another, and a classifier of both.

    Or the question alone.

    Args:
        image: whether it sees the image.
    """

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.encoder = QuestionEncoder(len(WORDS), DIM, DIM)
        self.stem = ImageStem(3, DIM, strides=(2, 2, 2), positions=True) if image else None
        cells = (SIDE // 8) ** 2 if image else 0
        self.classifier = Classifier(DIM * (1 + cells), 2 * DIM, len(ANSWERS))

    def forward(
        self, tokens: Tensor, *, context: Tensor, key_mask: Tensor, context_mask: None = None, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits of the answers."""
        question = self.encoder(tokens, key_mask)[1]
        both = question if self.stem is None else torch.cat((self.stem(context).flatten(1), question), -1)
        logits = self.classifier(both)
        return (logits, {}) if return_aux else logits


def build(name: str, task: Reasoning) -> nn.Module:
    """A fresh model."""
    return task.model(DIM, STEPS, 1, "mac") if name == "mac" else CNNAndLSTM(image=name == "cnn_lstm")


def samples(model: nn.Module, task: Reasoning) -> list[dict[str, Any]]:
    """The first questions of the test part with the answers, and where MAC looked at each step."""
    batch = next(iter(task.held_out("test"))).first(SHOWN)
    with torch.no_grad():
        logits, told = model.eval()(batch.tokens, **batch.options, return_aux=True)
    shown: list[dict[str, Any]] = []
    for row, question in enumerate(task.questions("test", SHOWN)):
        maps = {name: [[round(w, 3) for w in step] for step in value[row].tolist()] for name, value in told.items()}
        answer = ANSWERS[int(logits[row].argmax())]
        shown.append({"question": " ".join(question.words), "truth": question.answer, "answer": answer, **maps})
    return shown


def learn(name: str, seed: int, minutes: float, threads: int) -> dict[str, Any]:
    """One run, as it is written."""
    torch.manual_seed(seed)
    task = Reasoning(batch=BATCH, seed=seed)
    model = build(name, task)
    trainer = Trainer(model, task, Budget(seconds=60 * minutes), rate=RATE, device="cpu")
    curve = [[0.0, trainer.judge("validation").quality]]
    while trainer.spent < 1:
        trainer.step()
        if trainer.spent >= len(curve) / POINTS:
            curve.append([trainer.progress.seconds / 60, trainer.judge("validation").quality])
            print(
                f"{name} seed {seed}: {curve[-1][0]:.1f} min, {trainer.progress.steps:,} steps, {curve[-1][1]:.3f}",
                flush=True,
            )
    found = trainer.judge("test")
    return {
        "what": "visual reasoning",
        "model": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metric": "accuracy",
        "lower_is_better": False,
        "minutes": minutes,
        "threads": threads,
        "steps": trainer.progress.steps,
        "curve": curve,
        "test": {"accuracy": found.quality, **found.further},
        "baselines": task.baselines(),
        "bar": BAR,
        "margin": MARGIN,
        "samples": samples(model, task),
    }


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mac", "cnn_lstm", "lstm"], choices=["mac", "cnn_lstm", "lstm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/vqa"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.models:
            result = learn(name, seed, given.minutes, given.threads)
            (given.out / f"{name}-seed{seed}.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
