"""Loss, searches, alignment and hybrid recogniser by their equations; torch's loss; ESPnet's attention.

A case without weights says by its inputs and options what is computed: a beam search has a "beam", a prefix score has
"prefixes", a loss "logits" and "targets", an alignment "log_probs" and "targets". Lengths become masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.authors import Call, Config, Importer, Inputs, Outputs, State, renamed
from regard.mechanisms.pairs.ctc import LocationAware
from regard.models.hybrid import hybrid_loss
from regard.models.joint_decoding import JointHypothesis, joint_search
from regard.models.location_decoder import LocationDecoder
from regard.ops.ctc_alignment import align, occupancies
from regard.ops.ctc_loss import ctc_loss, split_labels
from regard.ops.ctc_prefix_score import CTCPrefixScorer
from regard.ops.ctc_search import Prefix, greedy_labels, prefix_beam_search
from regard.registry import UnsupportedError

Options = Mapping[str, Any]

_LOGZERO = -1e10
"""ESPnet's logarithm of 0."""

_OPTIONS = """blank zero_infinity reduction wildcard prefixes margin beam topk min_log_prob floor alpha beta eos lm
    att_dim chans dunits emb enc filts vocab sos scaling lambda gamma bonus label_smoothing normalise maxlen nbest"""
_KNOWN = set(_OPTIONS.split())


class _Criterion(nn.Module):
    """No weights: options alone."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = dict(options)


class _Recogniser(_Criterion):
    """CTC and the decoder on encoder frames."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.ctc_out = nn.Linear(options["enc"], options["vocab"])
        self.decoder = LocationDecoder(
            options["vocab"],
            options["enc"],
            dim=options["dunits"],
            embed_dim=options["emb"],
            hidden_dim=options["att_dim"],
            channels=options["chans"],
            radius=options["filts"],
        )


class _Table:
    """A bigram model: rows are the labels before, or the start, and columns what comes after, or the end."""

    def __init__(self, table: Tensor, num_labels: int, blank: int) -> None:
        rows, columns = table.shape
        if not {rows, columns} <= {num_labels, num_labels + 1}:
            raise UnsupportedError(f"a bigram table {tuple(table.shape)}: one row and column a class, or one more each")
        self.start = num_labels if rows > num_labels else blank
        self.table = table if columns > num_labels else torch.cat((table, table[:, blank, None]), 1)

    def score(self, prefixes: Any) -> Tensor:
        """The row of the last label."""
        return self.table[torch.tensor([prefix[-1] if prefix else self.start for prefix in prefixes])]


def _equations(config: Config) -> nn.Module:
    options = _options(config)
    return (_Recogniser if "vocab" in options else _Criterion)(options)


def _options(config: Config) -> dict[str, Any]:
    """Options; those that would change a number and are not known are refused."""
    options = dict(config or {})
    for name, value in options.items():
        if name not in _KNOWN and isinstance(value, (int, float)) and not isinstance(value, bool):
            raise UnsupportedError(f"ctc: {name}={value!r} means nothing to us; known are {', '.join(sorted(_KNOWN))}")
    return options


def _mask(lengths: Tensor | None, count: int) -> Tensor | None:
    return None if lengths is None else torch.arange(count, device=lengths.device) < lengths[:, None]


def _labels(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """Padded labels and their mask, of concatenated ones too."""
    targets, lengths = inputs["targets"], inputs.get("target_lengths")
    if targets.ndim == 1:
        return split_labels(targets, lengths)
    return targets, _mask(lengths, targets.shape[1])


def _call(module: _Criterion, inputs: Inputs, call: Call) -> Outputs:
    """What the inputs and options ask for."""
    options = module.options | {name: value for name, value in call.items() if name in _KNOWN}
    if isinstance(module, _Recogniser):
        return _jointly(module, inputs, options) if "beam" in options else _hybrid(module, inputs, options)
    if "beam" in options:
        return _beam(inputs, options)
    if "prefixes" in inputs or "prefixes" in options:
        return _prefix_scores(inputs, options)
    if "logits" in inputs:
        return _losses(inputs, options, "own")
    return _alignments(inputs, options) if "targets" in inputs else _greedy(inputs, options)


def _torch_call(module: _Criterion, inputs: Inputs, call: Call) -> Outputs:
    return _losses(inputs, module.options | {k: v for k, v in call.items() if k in _KNOWN}, "torch")


def _losses(inputs: Inputs, options: Options, engine: Any) -> Outputs:
    """All reductions; frames come first."""
    logits = inputs["logits"] if "logits" in inputs else inputs["log_probs"]
    logits = logits.transpose(0, 1)
    labels, label_mask = _labels(inputs)
    given: dict[str, Any] = {
        "frame_mask": _mask(inputs.get("input_lengths"), logits.shape[1]),
        "label_mask": label_mask,
        "blank": options.get("blank", 0),
        "zero_infinity": bool(options.get("zero_infinity", False)),
    }
    found: Outputs = {}
    for reduction in ("none", "mean", "sum"):
        loss = ctc_loss(logits, labels, reduction=reduction, engine=engine, **given)
        found |= {f"loss_{reduction}": loss, f"loss_{reduction}_allow_nonfinite": loss}
    exact = ctc_loss(logits.double(), labels, reduction="none", engine="own", **given)
    found |= {"loss_equations64": exact, "loss_equations64_allow_nonfinite": exact}
    return found | ({"out": found[f"loss_{options['reduction']}"]} if "reduction" in options else {})


def _beam(inputs: Inputs, options: Options) -> Outputs:
    """Prefixes by score, padded with -1."""
    log_probs = inputs["log_probs"]
    blank, alpha = options.get("blank", 0), options.get("alpha", 0.0)
    tables = [t for name, t in inputs.items() if t.is_floating_point() and t.ndim == 2 and name != "log_probs"]
    if alpha and not tables:
        raise UnsupportedError(f"alpha={alpha} weighs a language model, but no table of bigrams is among the inputs")
    table = _Table(tables[0].detach(), log_probs.shape[-1], blank) if alpha else None
    beams = prefix_beam_search(
        log_probs.detach(),
        frame_mask=_mask(inputs.get("input_lengths"), log_probs.shape[1]),
        beams=options["beam"],
        blank=blank,
        topk=options.get("topk"),
        floor=options.get("min_log_prob", options.get("floor")),
        language_model=table,
        alpha=alpha,
        beta=options.get("beta", 0.0),
        finish=options.get("eos", True) is not False,
    )
    found: Outputs = {}
    for number, some in enumerate(beams):
        columns = {"score": [p.score for p in some], "log_p_ctc": [p.log_ctc for p in some]}
        columns |= {"log_p_blank_allow_nonfinite": [p.log_blank for p in some]}
        columns |= {"log_p_nonblank_allow_nonfinite": [p.log_nonblank for p in some]}
        columns |= {"log_p_lm": [p.log_language for p in some]}
        found |= {f"{number}/{name}": log_probs.new_tensor(values) for name, values in columns.items()}
    return found | _rows(beams)


def _rows(found: Sequence[Sequence[Prefix | JointHypothesis]]) -> Outputs:
    """The labels of each utterance's hypotheses as rows, as long as the longest of all."""
    width = max((len(one.labels) for some in found for one in some), default=0)
    rows: Outputs = {}
    for number, some in enumerate(found):
        filled = [[*one.labels, *[-1] * (width - len(one.labels))] for one in some]
        rows[f"{number}/prefixes"] = torch.tensor(filled, dtype=torch.long).view(len(some), width)
        rows[f"{number}/lengths"] = torch.tensor([len(one.labels) for one in some])
    return rows


def _prefix_scores(inputs: Inputs, options: Options) -> Outputs:
    """psi of every label after each given prefix, and the probability of the prefix alone."""
    log_probs, blank = inputs["log_probs"], options.get("blank", 0)
    log_probs = log_probs if log_probs.ndim == 3 else log_probs[None]
    scorer = CTCPrefixScorer(log_probs, _mask(inputs.get("input_lengths"), log_probs.shape[1]), blank=blank)
    prefixes = inputs["prefixes"].tolist() if "prefixes" in inputs else options["prefixes"]
    labels = torch.arange(log_probs.shape[2], device=log_probs.device).expand(log_probs.shape[0], -1)
    scores: list[Tensor] = []
    for prefix in prefixes:
        state = scorer.begin()
        for label in prefix:
            if label >= 0:
                state = scorer.grow(state, torch.full_like(state.last, label))
        row = scorer.score(state, labels)
        row[:, blank] = _LOGZERO
        if isinstance(options.get("eos"), int) and not isinstance(options["eos"], bool):
            row[:, options["eos"]] = scorer.whole(state)
        scores.append(row)
    found = torch.stack(scores, 1)
    return {"out": found[0] if inputs["log_probs"].ndim == 2 else found}


def _alignments(inputs: Inputs, options: Options) -> Outputs:
    log_probs, blank = inputs["log_probs"], options.get("blank", 0)
    labels, label_mask = _labels(inputs)
    frames = inputs.get("input_lengths")
    frame_mask = _mask(frames, log_probs.shape[1])
    given: dict[str, Any] = {"frame_mask": frame_mask, "label_mask": label_mask, "blank": blank}
    best = align(log_probs.detach(), labels, **given, wildcard=options.get("wildcard"))
    passed = occupancies(log_probs.detach(), labels, **given, wildcard=options.get("wildcard"))
    loss = ctc_loss(log_probs, labels, **given, reduction="none", engine="own") if "wildcard" not in options else None
    found: Outputs = {}
    for number, spans in enumerate(best.spans()):
        length = log_probs.shape[1] if frames is None else int(frames[number])
        count = labels.shape[1] if label_mask is None else int(label_mask[number].sum())
        rows = [[span.place, span.first, span.end] for span in spans]
        found |= {
            f"{number}/labels": best.labels[number, :length],
            f"{number}/states": best.states[number, :length],
            f"{number}/frame_log_probs": best.frame_log_probs[number, :length],
            f"{number}/score": best.score[number],
            f"{number}/spans": torch.tensor(rows, dtype=torch.long).view(-1, 3),
            f"{number}/span_score": log_probs.new_tensor([span.probability for span in spans]),
            f"{number}/state_posterior": passed[number, :length, : 2 * count + 1],
        }
        if loss is not None:
            found[f"{number}/log_likelihood"] = -loss[number]
    return found


def _greedy(inputs: Inputs, options: Options) -> Outputs:
    log_probs = inputs["log_probs"]
    mask = _mask(inputs.get("input_lengths"), log_probs.shape[1])
    found = greedy_labels(log_probs.detach(), frame_mask=mask, blank=options.get("blank", 0))
    return {f"{number}/labels": torch.tensor(labels, dtype=torch.long) for number, labels in enumerate(found)}


def _hybrid(module: _Recogniser, inputs: Inputs, options: Options) -> Outputs:
    """The objective, what it is made of, and where the decoder looked."""
    frames, (labels, label_mask) = inputs["enc"], _labels(inputs)
    frame_mask = _mask(inputs.get("enc_lengths"), frames.shape[1])
    sos = options.get("sos", options["vocab"] - 1)
    module.decoder.attention.scaling = options.get("scaling", 2.0)
    tokens = F.pad(labels if label_mask is None else labels.masked_fill(~label_mask, sos), (1, 0), value=sos)
    logits, weights = module.decoder(frames, tokens, key_mask=frame_mask)
    loss = hybrid_loss(
        module.ctc_out(frames),
        logits,
        labels,
        frame_mask=frame_mask,
        label_mask=label_mask,
        end=sos,
        blank=options.get("blank", 0),
        ctc_weight=options.get("lambda", 0.5),
        smoothing=options.get("label_smoothing", 0.0),
        normalise=options.get("normalise", "utterance"),
        zero_infinity=bool(options.get("zero_infinity", False)),
    )
    return {**loss._asdict(), "decoder_logits": logits, "attention_weights": weights}


def _jointly(module: _Recogniser, inputs: Inputs, options: Options) -> Outputs:
    """Finished hypotheses by score."""
    frames, sos, blank = inputs["enc"], options.get("sos", options["vocab"] - 1), options.get("blank", 0)
    frame_mask = _mask(inputs.get("enc_lengths"), frames.shape[1])
    module.decoder.attention.scaling = options.get("scaling", 2.0)
    tables = [t for t in inputs.values() if t.is_floating_point() and t.ndim == 2]
    gamma = options.get("gamma", 0.0) if tables else 0.0
    with torch.no_grad():
        likely = module.ctc_out(frames).log_softmax(-1)
        hypotheses = joint_search(
            module.decoder,
            module.decoder.begin(frames, frame_mask),
            likely,
            frame_mask=frame_mask,
            start=sos,
            end=sos,
            blank=blank,
            beams=options["beam"],
            ctc_weight=options.get("lambda", 0.3),
            language_model=_Table(tables[0].detach(), likely.shape[-1], blank) if gamma else None,
            language_weight=gamma,
            length_bonus=options.get("bonus", 0.0),
            max_length=options.get("maxlen"),
            preselect=None,
            best=options.get("nbest"),
        )
    found: Outputs = {}
    for number, some in enumerate(hypotheses):
        columns = {"score": [h.score for h in some], "log_p_ctc": [h.log_ctc for h in some]}
        columns |= {"log_p_att": [h.log_attention for h in some], "log_p_lm": [h.log_language for h in some]}
        found |= {f"{number}/{name}": frames.new_tensor(values) for name, values in columns.items()}
    return found | _rows(hypotheses)


_ATTENTION = {
    r"^mlp_enc\.": "key_proj.",
    r"^mlp_dec\.": "query_proj.",
    r"^mlp_att\.": "filter_proj.",
    r"^loc_conv\.": "filters.",
    r"^gvec\.": "vector.",
}
_PARTS = {
    **{name: f"decoder.attention.{ours}" for name, ours in _ATTENTION.items()},
    r"^embed\.": "decoder.embed.",
    r"^cell\.": "decoder.cell.",
    r"^out\.": "decoder.out_proj.",
}


def _equation_weights(state: State) -> State:
    return renamed(state, _PARTS)


def _attention_arguments(config: Config) -> dict[str, Any]:
    """``han_mode`` says when something is computed, not what."""
    names = {"dunits": "dim", "eprojs": "context_dim", "att_dim": "hidden_dim", "aconv_chans": "channels"}
    names |= {"aconv_filts": "radius"}
    for name in config:
        if name not in names and name != "han_mode":
            raise UnsupportedError(f"AttLoc has no option {name!r}")
    return {ours: config[theirs] for theirs, ours in names.items()}


def _attention_weights(state: State) -> State:
    """Their filters lie in two dimensions, of which one is 1."""
    found = dict(renamed(state, _ATTENTION))
    found["filters.weight"] = found["filters.weight"].squeeze(2)
    return found


def _attention_call(layer: LocationAware, inputs: Inputs, call: Call) -> Outputs:
    """Some steps of their decoder; states (steps, B, dunits), or of one step (B, dunits)."""
    frames = inputs["enc"] if "enc" in inputs else inputs["enc_hs_pad"]
    lengths = inputs.get("enc_hs_len")
    if lengths is None:
        lengths = torch.tensor(call.get("enc_hs_len") or [frames.shape[1]] * len(frames), device=frames.device)
    mask = _mask(lengths, frames.shape[1])
    assert mask is not None
    states = inputs.get("dec_z")
    states = frames.new_zeros(call.get("steps", 1), frames.shape[0], layer.dim) if states is None else states
    layer.scaling = call.get("scaling", 2.0)
    frames = frames.masked_fill(~mask[..., None], 0.0)
    keys = layer.key_proj(frames)
    weights = inputs["att_prev"] if "att_prev" in inputs else layer.start(keys, mask)
    allowed, last = mask, call.get("last_attended_idx")
    if last is not None:  # theirs hides all but a few frames around that one
        place = torch.arange(frames.shape[1], device=frames.device)
        first, end = last - call.get("backward_window", 1), last + call.get("forward_window", 3)
        allowed = mask & (place >= first) & (place < end)
    contexts: list[Tensor] = []
    found: Outputs = {}
    for number, state in enumerate(states.view(-1, frames.shape[0], layer.dim)):
        context, weights = layer.step(state, frames, keys, weights, key_mask=allowed)
        contexts.append(context)
        found[f"weights{number}"] = weights
    context = torch.stack(contexts) if states.ndim == 3 else contexts[0]
    return {**found, "context": context, "weights": weights}


def _given(config: Config) -> dict[str, Any]:
    return {"config": config}


IMPORTERS = {
    "pytorch/pytorch:torch.nn.functional.ctc_loss": Importer(_equations, _given, _torch_call),
    "espnet/espnet:espnet/nets/pytorch_backend/rnn/attentions.py:AttLoc": Importer(
        LocationAware, _attention_arguments, _attention_call, _attention_weights
    ),
    "espnet/espnet:espnet/nets/ctc_prefix_score.py:CTCPrefixScoreTH": Importer(_equations, _given, _call),
    "equations": Importer(_equations, _given, _call, _equation_weights),
}
