"""``--task series``: forecast several variables, weather or what the user has recorded, as Informer measures it."""

from functools import partial
from typing import TYPE_CHECKING

from regard.race.discipline import ENCODER_FIELD, Discipline, Prepared, Published, fitted
from regard.tasks.documents import InputError
from regard.tasks.recordings import Recording, flights_weather, read_recording, waves
from regard.tasks.series import Forecasting, split_by_time

if TYPE_CHECKING:
    from regard.race.settings import Settings

HORIZON = 24


def prepare(settings: "Settings") -> Prepared:
    """Read the recording of a race and cut it by time.

    Raises:
        InputError: see :mod:`regard.tasks`.
    """
    if settings.ngram != 1:
        raise InputError(f"--ngram {settings.ngram}: a step of a series is read by itself; leave it out")
    recording = _recording(settings)
    split = split_by_time(recording)
    horizon = settings.horizon or HORIZON
    sizes = {"length": settings.length, "batch": settings.batch, "seed": settings.seed}
    task = Forecasting(recording, split, horizon=horizon, **sizes)
    return Prepared(
        task,
        f"{recording.name}: {len(recording.columns)} variables, {horizon:,} steps from the last {settings.length:,}",
        recording.digest,
        split.rule,
        task.sizes(),
        baselines=lambda: {_with(name, mae): mse for name, (mse, mae) in task.baselines().items()},
        published=_published(task),
        remarks=["values are standardised by the training part", *recording.remarks],
    )


def _recording(settings: "Settings") -> Recording:
    if len(settings.files) > 1:
        raise InputError(f"--task series takes one CSV file, got {len(settings.files)}: {', '.join(settings.files)}")
    if settings.files:
        return read_recording(settings.files[0])
    return waves() if settings.smoke else flights_weather()


def _published(task: Forecasting) -> Published | None:
    found = task.published()
    if found is None:
        return None
    mse, mae = found
    remark = "Measured after training to convergence, with a past whose length was tuned for each horizon."
    return Published("Zhou et al. 2020, arXiv:2012.07436, table 2", ((_with("Informer", mae), mse),), remark)


def _with(name: str, mae: float) -> str:
    """A name with the second figure, which decides nothing."""
    return f"{name} (mean absolute error {mae:.3f})"


SERIES = Discipline(
    name="series",
    question="Which attention forecasts this?",
    goal="forecast the next steps of every variable",
    causal=False,
    field=partial(fitted, ENCODER_FIELD),
    control=True,
    takes=frozenset({"files", "horizon"}),
    defaults={"length": 96, "horizon": HORIZON, "ngram": 1, "batch": 16, "dim": 64, "learning_rate": 1e-3},
    full={},
    smoke={"length": 24, "horizon": 6, "steps": 5, "dim": 32, "depth": 1, "num_heads": 2, "batch": 2},
    prepare=prepare,
)
