"""What can be written without hearing anything but how long a recording is: the bars that a recogniser must clear."""

from collections.abc import Callable

from regard.tasks.error_rates import edit_distance, error_rates
from regard.tasks.speech import Speech
from regard.tasks.speech_data import Prompt
from regard.tasks.task import Part

LIKE_LENGTH = "the training text of like length"


def speech_baselines(task: Speech, part: Part = "test") -> dict[str, float]:
    """Character error rates of answers that hear no sound.

    Args:
        task: the recordings.
        part: that is judged.

    Returns:
        "nothing": the empty text, 1 by definition. "the commonest text": the training text that is nearest to all
        others. The training text of like length: that of the recording whose length differs least. "the likeliest
        characters": the beginning of the bigrams' most likely text, as long as recordings of that length say.
    """
    train = task.parts["train"]
    commonest = _medoid([prompt.text for prompt in train])
    pace = sum(len(prompt.text) for prompt in train) / sum(len(task.frames(prompt)) for prompt in train)
    endless = _likeliest([prompt.text for prompt in train], 1 + max(len(p.text) for p in task.parts[part]) * 4)

    def like_length(prompt: Prompt) -> str:
        length = len(task.frames(prompt))
        return min(train, key=lambda other: (abs(len(task.frames(other)) - length), other.name)).text

    answers: dict[str, Callable[[Prompt], str]] = {
        "nothing": lambda prompt: "",
        "the commonest text": lambda prompt: commonest,
        LIKE_LENGTH: like_length,
        "the likeliest characters": lambda prompt: endless[: round(pace * len(task.frames(prompt)))],
    }
    truths = [prompt.text for prompt in task.parts[part]]
    return {name: error_rates(truths, [say(one) for one in task.parts[part]])[0] for name, say in answers.items()}


def _medoid(texts: list[str]) -> str:
    """The text with the fewest edits to the others, among a hundred of them, spread evenly."""
    some = texts[:: max(1, len(texts) // 100)]
    return min(some, key=lambda text: (sum(edit_distance(other, text) for other in some), text))


def _likeliest(texts: list[str], length: int) -> str:
    """From each character to the one that follows it most often and has followed it least here, so as not to circle."""
    follows: dict[str, dict[str, int]] = {}
    for text in texts:
        for one, other in zip(f" {text}", f"{text} ", strict=True):
            counts = follows.setdefault(one, {})
            counts[other] = counts.get(other, 0) + 1
    written = " "
    said: dict[str, int] = {}
    while len(written) <= length:
        options = follows[written[-1]]
        best = max(options, key=lambda sign: (options[sign] / (1 + said.get(written[-1] + sign, 0)), sign))
        said[written[-1] + best] = said.get(written[-1] + best, 0) + 1
        written += best
    return written[1:]
