"""The recogniser that ``regard transcribe`` asks: from its folder, or trained into it first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from regard.cli.display import say
from regard.cli.training import train_shown
from regard.models.speech_recognizer import SpeechRecognizer
from regard.tasks.alphabet import Alphabet
from regard.tasks.documents import InputError
from regard.tasks.speech import Speech
from regard.tasks.speech_data import Prompts, read_prompts
from regard.train.budget import Budget
from regard.train.fitting import is_fitted, read_fitted

KIND = "speech"
SIZES: dict[str, Any] = {"dim": 128, "depth": 4, "num_heads": 4, "mechanism": "full"}
OPTIONS: dict[str, Any] = {"decoder": "transformer", "channels": 16}
SOUND: dict[str, Any] = {"sample_rate": 8000, "num_mels": 40}
CTC_WEIGHT, SECONDS, RATE = 0.5, 30.0, 1.5e-3
"""Of CTC in the loss; of sound in a step; the peak learning rate."""


@dataclass(frozen=True)
class Recogniser:
    """A trained model with what it writes in.

    Attributes:
        model: in eval mode.
        alphabet: of its labels.
        facts: what it was trained on, as :func:`regard.train.fitting.read_fitted` has it.
    """

    model: SpeechRecognizer
    alphabet: Alphabet
    facts: dict[str, Any]

    @property
    def sample_rate(self) -> int:
        """What it hears, in Hz."""
        return self.model.log_mel.sample_rate


def make_task(prompts: Prompts, *, seed: int = 0) -> tuple[Speech, str]:
    """What a recogniser learns from, and what that is, in words."""
    task = Speech(prompts, **SOUND, seconds=SECONDS, seed=seed, ctc_weight=CTC_WEIGHT)
    recordings, frames = task.sizes()["train"]
    return task, f"{prompts.title} ({recordings:,} recordings, {frames / 6000:.0f} min)"


def fitted_recogniser(console: Console, folder: Path, data: Path | None, budget: Budget) -> Recogniser:
    """The recogniser in ``folder``; where there is none that is finished, it is trained first.

    Args:
        console: where progress is shown.
        folder: of the model.
        data: to train on; None: the Debian package that is installed.
        budget: of the training.

    Raises:
        InputError: there is nothing to learn from, or the folder holds something else.
    """
    if not is_fitted(folder):
        task, title = make_task(read_prompts(data))
        for remark in task.remarks:
            say(console, f"{title}: {remark}")
        torch.manual_seed(0)
        model = task.model(**SIZES, **OPTIONS)
        facts = {"kind": KIND, "data": title, "alphabet": task.alphabet.signs, "sizes": SIZES, "options": OPTIONS}
        train_shown(console, model, task, folder, budget, rate=RATE, facts={**facts, "sound": SOUND})
    return load_recogniser(folder)


def load_recogniser(folder: Path) -> Recogniser:
    """The recogniser that was trained into ``folder``.

    Raises:
        InputError: there is none, or it belongs to another version.
    """
    weights, facts = read_fitted(folder, KIND)
    try:
        alphabet = Alphabet(facts["alphabet"])
        model = SpeechRecognizer(len(alphabet), **facts["sizes"], **facts["options"], **facts["sound"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} holds a model of another version of regard: train again") from error
    return Recogniser(model.eval(), alphabet, facts)
