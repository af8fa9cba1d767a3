"""Does a VQ-VAE learn to give back music from few bits, and do priors learn its codes? On one thread of a CPU.

    python benchmarks/learn_music.py --data FOLDER --minutes 8 --seeds 0 1 2 --threads 1 --out results/music
        [--models vqvae prior upsampler]

Music of :mod:`regard.tasks.music`: the five songs of the Debian package asterisk-moh-opsound-wav, or ``--data`` files
and folders. Levels of 16 and 64 samples a code, 512 codes each: 4.5 and 1.1 kilobits a second at 8 kHz. The VQ-VAE is
judged by spectral convergence of held-out passages, against k-means of frames with as many bits; the priors, of the
upper codes and of the lower ones given the upper, by bits per code against the bigram. Seeds of the priors share the
codes of the VQ-VAE of seed 0, which is trained first where it is not there: then their bits can be compared. The curve
is the validation part over minutes of training; the test part is asked once, at the end. Each run writes
FOLDER/<model>-seed<k>.json, from which ``draw_learning.py`` draws.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from regard.models.jukebox_prior import JukeboxPrior
from regard.models.jukebox_sampling import sample_codes
from regard.models.vqvae import VQVAE
from regard.tasks.codes import Coded, Codes, code_songs, counts_of
from regard.tasks.music import CODES, Music, Songs, build_vqvae, read_songs
from regard.tasks.music_baselines import music_baselines
from regard.tasks.sound_statistics import code_figures
from regard.tasks.task import Task
from regard.train.budget import Budget
from regard.train.composer import RATES, ROWS, WINDOWS
from regard.train.trainer import Trainer

POINTS = 16
"""Of the curve."""
BARS = {"vqvae": "k-means of frames, level 0", "prior": "bigram", "upsampler": "bigram"}
MARGINS = {"vqvae": 0.03, "prior": 0.3, "upsampler": 0.15}
"""Written before any run: a model has learned if the mean of its seeds is better than its bar by that much."""
NO_COLLAPSE = 0.25
"""Written before any run: no codebook has collapsed if the perplexity of its codes of the test part is at least this
share of their number, in every seed."""
LEVELS = {"prior": 1, "upsampler": 0}


def train(model: torch.nn.Module, task: Task, minutes: float, name: str) -> tuple[Trainer, list[list[float]]]:
    """The trainer at the end, and the curve."""
    trainer = Trainer(model, task, Budget(seconds=60 * minutes), rate=RATES[name], device="cpu")
    curve = [[0.0, trainer.judge("validation").quality]] if name != "vqvae" else []  # no codebook before a batch
    while trainer.spent < 1:
        trainer.step()
        if trainer.spent >= (len(curve) + (name == "vqvae")) / POINTS:
            curve.append([trainer.progress.seconds / 60, trainer.judge("validation").quality])
            print(f"{name}: {curve[-1][0]:.1f} min, {trainer.progress.steps:,} steps, {curve[-1][1]:.3f}", flush=True)
    return trainer, curve


def learn_vqvae(songs: Songs, seed: int, minutes: float, out: Path) -> dict[str, Any]:
    """One run of the VQ-VAE, whose weights are kept; how many codes it uses of held-out music is told as well."""
    torch.manual_seed(seed)
    task = Music(songs, seed=seed)
    model = task.model()
    assert isinstance(model, VQVAE)
    trainer, curve = train(model, task, minutes, "vqvae")
    judged = trainer.judge("test")
    save_file(model.state_dict(), out / f"vqvae-seed{seed}.safetensors")
    coded, test = code_songs(model, songs), {task.metric.name: judged.quality, **judged.further}
    for level in range(model.levels):
        codes = torch.cat([stream.levels[level] for stream in coded.test])
        reference = counts_of([stream.levels[level] for stream in coded.train], CODES)
        test |= code_figures(codes, reference, level)
    lively = all(test[f"perplexity of codes, level {level}"] >= NO_COLLAPSE * CODES for level in range(model.levels))
    by_song: dict[str, list[tuple[float, float]]] = {}
    for name, score, amount in judged.units:
        by_song.setdefault(name, []).append((score, amount))
    shown = [{"song": n, "convergence": sum(s for s, _ in v) / sum(a for _, a in v)} for n, v in by_song.items()]
    told = {"what": "music, sound from its codes", "test": test, "baselines": music_baselines(task), "samples": shown}
    return _told("vqvae", seed, trainer, curve) | told | {"no collapse": lively}


def learn_prior(name: str, coded: Coded, seed: int, minutes: float) -> dict[str, Any]:
    """One run of a prior; codes that it draws are shown beside held-out ones."""
    torch.manual_seed(seed)
    level = LEVELS[name]
    task = Codes(coded, level, length=WINDOWS[level], batch=ROWS[level], seed=seed)
    model = task.model()
    assert isinstance(model, JukeboxPrior)
    trainer, curve = train(model, task, minutes, f"prior-{level}")
    judged = trainer.judge("test")
    batch = next(iter(task.held_out("test"))).first(1)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_codes(model.eval(), 1, task.length, upper_codes=batch.context, generator=generator)[0]
    reference = counts_of([stream.levels[level] for stream in coded.train], CODES)
    ways = {"drawn": drawn, "held out": batch.tokens[0]}
    shown = [{"codes": way, **code_figures(codes, reference, level)} for way, codes in ways.items()]
    what = "music, upper codes" if task.top else "music, lower codes given the upper"
    told = {"what": what, "test": {task.metric.name: judged.quality}, "baselines": task.baselines(), "samples": shown}
    return _told(name, seed, trainer, curve) | told


def _told(name: str, seed: int, trainer: Trainer, curve: list[list[float]]) -> dict[str, Any]:
    metric = trainer.task.metric
    return {
        "model": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "metric": metric.name,
        "lower_is_better": metric.lower_is_better,
        "minutes": (trainer.budget.seconds or 0.0) / 60,
        "threads": torch.get_num_threads(),
        "steps": trainer.progress.steps,
        "curve": curve,
        "bar": BARS[name],
        "margin": MARGINS[name],
    }


def shared_codes(songs: Songs, make: Callable[[], None], out: Path) -> Coded:
    """Those of the VQ-VAE of seed 0."""
    path = out / "vqvae-seed0.safetensors"
    if not path.is_file():
        make()
    model = build_vqvae()
    model.load_state_dict(load_file(path))
    return code_songs(model, songs)


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", type=Path)
    parser.add_argument("--models", nargs="+", default=list(BARS), choices=list(BARS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/music"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    songs = read_songs(given.data)

    def keep(result: dict[str, Any]) -> None:
        path = given.out / f"{result['model']}-seed{result['seed']}.json"
        path.write_text(json.dumps(result, indent=1))

    if "vqvae" in given.models:
        for seed in given.seeds:
            keep(learn_vqvae(songs, seed, given.minutes, given.out))
    priors = [name for name in LEVELS if name in given.models]
    if priors:
        coded = shared_codes(songs, lambda: keep(learn_vqvae(songs, 0, given.minutes, given.out)), given.out)
        for seed in given.seeds:
            for name in priors:
                keep(learn_prior(name, coded, seed, given.minutes))


if __name__ == "__main__":
    main()
