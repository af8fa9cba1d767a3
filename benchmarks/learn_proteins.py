"""Does a small AlphaFold learn to fold? On clusters of two families that it has not seen, and on a family it has not.

    python benchmarks/learn_proteins.py --data FOLDER --minutes 12 --seeds 0 1 2 --threads 1 --out results/proteins

FOLDER holds Debian's theseus-examples, unpacked; without it the installed package is read. There are two splits. In
"clusters" whole clusters (below 40 % identity) of the dehydrogenases and of the serine proteases are held out, while
the rest of both families is trained on: it asks for what relatives tell, and a family's mean distances, which tell much
of it, stand beside the bar. In "family" no protease is trained on at all: it asks for what is true of all proteins, of
which one large family can teach little.

The model tells distances, and its C-alphas are traced through them; ``--structure`` trains the structure module beside
it. The curve is the precision of the top L long-range contacts in crops of the validation chains over minutes of
training; whole test chains are judged once, at the end. Each run writes FOLDER/<model>-<split>-seed<k>.json, from which
``draw_learning.py`` draws.
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.models.all_atoms import ALPHA
from regard.models.alphafold import AlphaFold
from regard.models.structure_losses import distogram_loss, lddt_ca
from regard.tasks.protein_baselines import BySeparation, FamilyMean, mutual_information, points_of
from regard.tasks.protein_families import Family, read_families, theseus
from regard.tasks.protein_scores import contact_precision, contact_probabilities
from regard.tasks.protein_split import FamilySplit, Member, split_families
from regard.tasks.proteins import Proteins
from regard.tasks.trace import trace
from regard.train.budget import Budget
from regard.train.trainer import Trainer

SIZES: dict[str, Any] = {"dim": 32, "depth": 2, "num_heads": 4}
OPTIONS: dict[str, Any] = {"recycles": 0, "msa_drop": 0.0, "pair_drop": 0.1, "letters": 0.1}
STRUCTURE_DEPTH = 2
CROP, ROWS, RATE = 80, 8, 2e-3
POINTS = 16
"""Of the curve."""

HELD_OUT_FAMILY = "tryps"
JUDGED = 16
"""Test chains at most."""

METRIC = "contact precision, top L"
BAR, MARGIN = "by separation", {"clusters": 0.08, "family": 0.03}
"""Written before any run of this length, after a look at 1,000 steps on these same test chains, so that the figures are
somewhat optimistic: it has learned if the mean of its seeds is so much above what the number of places between two
residues tells, and the seeds differ by less than that."""

LDDT_MARGIN = {"clusters": 0.05, "family": 0.03}
NATS_MARGIN = {"clusters": 0.05, "family": 0.05}
"""The same for the mean lDDT of traced C-alphas, and for the cross-entropy of distances, the latter below the
baseline's."""

TRACED = 100
"""Steps of a trace."""


@cache
def families(data: Path | None) -> list[Family]:
    """Read once."""
    return theseus() if data is None else read_families(data)


@cache
def make_split(data: Path | None, name: str) -> FamilySplit:
    """One of both."""
    return split_families(families(data), held_out=HELD_OUT_FAMILY if name == "family" else None)


@cache
def baselines(data: Path | None, name: str) -> dict[str, dict[str, float]]:
    """Each baseline's mean figures over the test chains; the same for every seed."""
    split = make_split(data, name)
    by_separation = BySeparation(split.chain(member) for member in split.train)
    family_mean = FamilyMean(split, by_separation)
    found: dict[str, list[dict[str, float]]] = {BAR: [], "family mean": [], "mutual information": []}
    for member in Proteins(split, judged=JUDGED).judged("test"):
        chain, family = split.chain(member), split.families[member.family]
        found[BAR].append(figures(by_separation.logits(chain.places), split, member))
        if name == "clusters":
            found["family mean"].append(figures(family_mean.logits(member), split, member))
        letters = family.target(member.row, range(len(family.alignment))).letters
        found["mutual information"].append(contacts(mutual_information(letters), split, member))
    return {title: mean(rows) for title, rows in found.items() if rows}


def figures(logits: Tensor, split: FamilySplit, member: Member) -> dict[str, float]:
    """Cross-entropy, contacts, and lDDT of a trace."""
    chain = split.chain(member)
    points, mask = points_of(chain)
    loss = float(distogram_loss(logits[None], points[None], mask[None]))
    alphas = trace(logits, chain.places, steps=TRACED)
    told = {"nats per pair": loss, "lDDT-CA, trace": lddt(alphas, chain.atoms[:, ALPHA], chain.atom_mask[:, ALPHA])}
    return told | contacts(contact_probabilities(logits), split, member)


def contacts(probabilities: Tensor, split: FamilySplit, member: Member) -> dict[str, float]:
    """Precision of long-range contacts."""
    chain = split.chain(member)
    found = contact_precision(probabilities, *points_of(chain), chain.places)
    return {f"contact precision, top {top}": value for top, value in found.items()}


def lddt(found: Tensor, true: Tensor, mask: Tensor) -> float:
    """The mean over known residues."""
    return float(lddt_ca(found, true, mask)[mask].mean())


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def judge(model: nn.Module, task: Proteins) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures of the test chains: of the structure module and of a trace; and each chain's, as samples."""
    assert isinstance(model, AlphaFold)
    model.eval()
    rows: list[dict[str, float]] = []
    shown: list[dict[str, Any]] = []
    for member, batch in zip(task.judged("test"), task.held_out("test"), strict=True):
        options = {name: value for name, value in batch.options.items() if name != "truth"}
        folded = model.predict(batch.tokens, **options)
        known, true = batch.truth.atom_mask[0, :, ALPHA], batch.truth.atoms[0, :, ALPHA]
        row = figures(folded.distogram[0], task.split, member)
        if folded.atoms is not None and folded.plddt is not None:
            row["lDDT-CA, structure"] = lddt(folded.atoms[0, :, ALPHA], true, known)
            row["predicted lDDT"] = float(folded.plddt[0][known].mean()) / 100
        rows.append(row)
        shown.append({"chain": batch.units[0], "residues": len(known), **{k: round(v, 4) for k, v in row.items()}})
    return mean(rows), shown


def learn(name: str, seed: int, minutes: float, threads: int, data: Path | None, structure: bool) -> dict[str, Any]:
    """One run, as it is written."""
    torch.manual_seed(seed)
    split = make_split(data, name)
    task = Proteins(split, crop=CROP, rows=ROWS, seed=seed, judged=JUDGED)
    model = task.model(**SIZES, **OPTIONS, structure=structure, structure_depth=STRUCTURE_DEPTH)
    trainer = Trainer(model, task, Budget(seconds=60 * minutes), rate=RATE, device="cpu")
    curve = [[0.0, trainer.judge("validation").further[METRIC]]]
    while trainer.spent < 1:
        trainer.step()
        if trainer.spent >= len(curve) / POINTS:
            found = trainer.judge("validation")
            curve.append([trainer.progress.seconds / 60, found.further[METRIC]])
            told = f"{curve[-1][0]:.1f} min, {trainer.progress.steps:,} steps, {found.quality:.3f} nats per pair"
            print(f"{name} seed {seed}: {told}, {METRIC} {curve[-1][1]:.3f}", flush=True)
    test, samples = judge(model, task)
    beside = baselines(data, name)
    print(f"{name} seed {seed}: {test}, beside {beside}", flush=True)
    return {
        "what": f"proteins, held-out {name}",
        "model": model_name(structure),
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "metric": METRIC,
        "lower_is_better": False,
        "minutes": minutes,
        "threads": threads,
        "steps": trainer.progress.steps,
        "curve": curve,
        "test": test,
        "baselines": {title: row[METRIC] for title, row in beside.items()},
        "bar": BAR,
        "margin": MARGIN[name],
        "further baselines": beside,
        "further margins": {"lDDT-CA, trace": LDDT_MARGIN[name], "nats per pair": NATS_MARGIN[name]},
        "data": split.sizes(),
        "samples": samples,
    }


def model_name(structure: bool) -> str:
    """As it stands in tables."""
    return "alphafold2_structure" if structure else "alphafold2"


def main() -> None:
    """Train what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", default=["clusters", "family"], choices=["clusters", "family"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--structure", action="store_true", help="train the structure module as well")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/proteins"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.splits:
            result = learn(name, seed, given.minutes, given.threads, given.data, given.structure)
            path = given.out / f"{result['model']}-{name}-seed{seed}.json"
            path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
