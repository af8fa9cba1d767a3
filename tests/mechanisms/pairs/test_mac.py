"""The steps of both variants as loops over words and cells, in float64; padding, dropout, export, refusals."""

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.mechanisms.pairs.mac import Cell, Mac
from regard.ops.reasoning_units import ControlUnit, ReadUnit, WriteUnit
from regard.registry import UnsupportedError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def given(words=5, cells=7, dim=4, context_dim=6):
    return random(3, words, dim), random(3, cells, context_dim), random(3, dim)


def pooled(scores, values):
    powers = [torch.exp(score) for score in scores]
    return sum(power * value / sum(powers) for power, value in zip(powers, values, strict=True))


def attention(score, values):
    return pooled([score(value) for value in values], values)


def elu(x):
    return torch.where(x > 0, x, torch.exp(x) - 1)


def paper(mac, words, cells, q):
    """One sequence; the equations of section 3.2 with self-attention and gate."""
    cell = mac.cells[0]
    control, read, write = cell.control, cell.read, cell.write
    cs, ms = [mac.control_0], [mac.memory_0]
    for i in range(mac.steps):
        c, m = cs[-1], ms[-1]
        cq = control.merge.inner(torch.cat((c, mac.step_maps[i](q))))
        c = attention(lambda w, cq=cq: control.logits(cq * w), words)

        def score(k, c=c, m=m):
            meeting = read.memory_proj(m) * read.knowledge_proj(k)
            return read.logits(c * read.merge.inner(torch.cat((meeting, k))))

        r = attention(score, cells)
        new = write.merge(torch.cat((m, r)))
        if write.self_logits is not None:
            earlier = [write.self_logits(c * before) for before in cs[1:]]
            found = pooled(earlier, ms[1:]) if earlier else torch.zeros_like(m)
            new = write.second_merge(torch.cat((found, new)))
        if write.gate is not None:
            g = 1 / (1 + torch.exp(-write.gate(c)))
            assert g.shape == (1,)
            new = g * m + (1 - g) * new
        cs.append(c)
        ms.append(new)
    return ms[-1]


def authors(mac, words, cells, q):
    """One sequence, without options."""
    cell = mac.cells[0]
    control, read, write = cell.control, cell.read, cell.write
    m = mac.memory_0
    for i in range(mac.steps):
        cq = mac.step_maps[i](torch.tanh(mac.question_map(q)))
        c = attention(lambda w, cq=cq: control.logits(cq * w), words)

        def score(k, c=c, m=m):
            projected = read.knowledge_proj(k)
            both = torch.cat((read.memory_proj(m) * projected, projected))
            return read.logits(elu(c * read.merge.outer(elu(read.merge.inner(both)))))

        m = write.merge(torch.cat((m, attention(score, cells))))
    return m


def drawn(**options):
    mac = Mac(4, 6, steps=4, **options).double()
    for parameter in mac.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mac


def told(equations, mac, x, cells, q, words=None, keys=None):
    return torch.stack(
        [
            equations(
                mac, x[b] if words is None else x[b][words[b]], cells[b] if keys is None else cells[b][keys[b]], q[b]
            )
            for b in range(len(x))
        ]
    )


@pytest.mark.parametrize("words", [5, 1])
@pytest.mark.parametrize(("self_attention", "gate"), [("none", "none"), ("control", "scalar")])
def test_matches_the_equations_of_the_paper(words, self_attention, gate):
    mac, (x, cells, q) = drawn(variant="paper", self_attention=self_attention, gate=gate), given(words)
    assert_close(mac(x, cells, question=q), told(paper, mac, x, cells, q), rtol=0, atol=1e-11)


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_padding_of_words_and_of_cells_changes_nothing(variant):
    mac, (x, cells, q) = drawn(variant=variant), given()
    words, keys = torch.rand(3, 5) < 0.7, torch.rand(3, 7) < 0.7
    words[:, 2] = keys[:, 3] = True
    x, cells = x.masked_fill(~words[..., None], torch.nan), cells.masked_fill(~keys[..., None], torch.nan)
    y, aux = mac(x, cells, question=q, query_mask=words, key_mask=keys, return_aux=True)
    equations = {"paper": paper, "authors": authors}[variant]
    assert_close(y, told(equations, mac, x, cells, q, words, keys), rtol=0, atol=1e-11)
    assert not aux["map/words"].masked_select(~words[:, None]).any()
    assert not aux["map/knowledge"].masked_select(~keys[:, None]).any()
    assert_close(aux["map/words"].sum(-1), torch.ones(3, 4, dtype=torch.float64))
    assert_close(aux["map/knowledge"].sum(-1), torch.ones(3, 4, dtype=torch.float64))


def test_no_word_and_no_cell_count_as_zero():
    mac, (x, cells, q) = drawn(), given()
    none = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(3, 7, dtype=torch.bool)
    y, aux = mac(x, cells, question=q, query_mask=none[0], key_mask=none[1], return_aux=True)
    assert not aux["map/words"].any()
    assert not aux["map/knowledge"].any()
    m = mac.memory_0
    for _ in range(4):
        m = mac.cells[0].write.merge(torch.cat((m, torch.zeros_like(m))))
    assert_close(y, m.expand(3, -1), rtol=0, atol=1e-12)


def test_the_authors_gate_lets_the_new_memory_in_and_the_papers_keeps_the_old_one():
    for gate, bias, kept in (("vector", 50.0, False), ("vector", -50.0, True), ("scalar", 50.0, True)):
        mac = drawn(gate=gate, gate_bias=bias, variant="paper" if gate == "scalar" else "authors")
        x, cells, q = given()
        y = mac(x, cells, question=q)
        assert torch.allclose(y, mac.memory_0.expand_as(y), atol=1e-9) == kept
    assert Mac(4, gate="vector").cells[0].write.gate_bias == 1.0
    assert Mac(4, gate="scalar").cells[0].write.gate_bias == 0.0


def test_one_mask_of_the_memory_serves_all_steps():
    seen = []
    for variational in (True, False):
        mac = Mac(200, steps=5, memory_drop=0.5, variational_drop=variational).train()
        torch.nn.init.ones_(mac.memory_0)
        mac.cells[0].write.merge = torch.nn.Identity()
        mac.cells[0].write.inputs = "memory"  # the memory stays all ones
        taken = []
        mac.cells[0].read.memory_proj.register_forward_pre_hook(
            lambda part, inputs, taken=taken: taken.append(inputs[0])
        )
        mac(torch.randn(2, 3, 200), torch.randn(2, 4, 200), question=torch.randn(2, 200))
        assert set(taken[0].unique().tolist()) == {0.0, 2.0}
        assert not torch.equal(taken[0][0], taken[0][1])
        seen.append(all(torch.equal(taken[0], other) for other in taken))
    assert seen == [True, False]


def test_read_dropout_is_on_cells_memory_and_interactions():
    mac, taken = Mac(50, steps=2, read_drop=0.5).train(), []
    read = mac.cells[0].read
    for part in (read.knowledge_proj, read.memory_proj, read.logits):
        part.register_forward_pre_hook(lambda _, inputs: taken.append(float((inputs[0] == 0).double().mean())))
    mac(torch.randn(4, 3, 50), torch.randn(4, 6, 50), question=torch.randn(4, 50))
    assert len(taken) == 6
    assert all(0.3 < share < 0.7 for share in taken)


def test_a_generator_decides_every_dropout():
    mac = Mac(8, steps=3, memory_drop=0.3, read_drop=0.3, write_drop=0.3).train()
    x, cells, q = torch.randn(2, 5, 8), torch.randn(2, 6, 8), torch.randn(2, 8)
    first, second, third = (mac(x, cells, question=q, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(first, third)
    for option in ("memory_drop", "read_drop", "write_drop"):
        one = Mac(8, steps=3, **{option: 0.3})
        assert not torch.equal(one.train()(x, cells, question=q), one.eval()(x, cells, question=q)), option


def test_cells_are_projected_once_unless_dropout_draws_anew():
    for drop, calls in ((0.0, 1), (0.2, 5)):
        mac, counted = Mac(8, steps=5, read_drop=drop).train(), []
        mac.cells[0].read.knowledge_proj.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        mac(torch.randn(2, 5, 8), torch.randn(2, 6, 8), question=torch.randn(2, 8))
        assert len(counted) == calls


def test_export_with_any_number_of_words_and_cells():
    mac = Mac(8, steps=2).eval()

    def arguments(words, cells):
        mask = torch.arange(cells) < torch.tensor([[cells], [cells - 1]])
        return {
            "x": torch.randn(2, words, 8),
            "context": torch.randn(2, cells, 8),
            "question": torch.randn(2, 8),
            "key_mask": mask,
        }

    axis = {1: torch.export.Dim.DYNAMIC}
    shapes = {"x": axis, "context": axis, "question": None, "key_mask": axis}
    program = torch.export.export(mac, (), arguments(5, 7), dynamic_shapes=shapes).module()
    for sizes in ((5, 7), (3, 11)):
        inputs = arguments(*sizes)
        assert_close(program(**inputs), mac(**inputs))


def test_starts_and_parameters():
    assert Mac(8).control_0 is None
    assert Mac(8).initial_control == "question"
    assert Mac(8, feed_control=True).control_0.shape == Mac(8, 5, variant="paper").control_0.shape == (8,)
    assert Mac(8, 5).memory_0.shape == (5,)
    assert len(Mac(8).step_maps) == 12
    assert len(Mac(8, unshared_inputs=False).step_maps) == 1
    whole, steps = Mac(64), Mac(64, steps=13)
    assert sum(p.numel() for p in steps.parameters()) - sum(p.numel() for p in whole.parameters()) == 64 * 65
    assert abs(float(Mac(800, steps=1).memory_0.detach().std()) - 1) < 0.1
    assert not whole.cells[0].read.logits.bias.any()


def test_other_cells_replace_the_usual_one():
    cell = Cell(
        ControlUnit(8, answer="question"), ReadUnit(8, 8, merge=None, beside="none"), WriteUnit(8, 8, inputs="sum")
    )
    mac = Mac(8, steps=2, cell=cell, unshared_cells=True)
    assert len(mac.cells) == 2
    assert not torch.equal(mac.cells[0].read.logits.weight, mac.cells[1].read.logits.weight)
    assert mac(torch.randn(2, 5, 8), torch.randn(2, 6, 8), question=torch.randn(2, 8)).shape == (2, 8)
    with pytest.raises(ValueError, match="options of the cell"):
        Mac(8, cell=cell, gate="vector")


def test_refusals():
    mac, (x, cells, q) = Mac(4, 6).double(), given()
    for change, message in (
        ({"question": None}, r"pass question=, \(3, 4\)"),
        ({"question": q[:2]}, r"question has shape \(2, 4\), expected \(3, 4\)"),
        ({"context": None}, "pass the other as context"),
        ({"context": x}, "context has shape"),
        ({"x": cells}, "x has shape"),
        ({"query_mask": torch.ones(3, 7, dtype=torch.bool)}, "query_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            mac(**{"x": x, "context": cells, "question": q} | change)
    with pytest.raises(UnsupportedError, match="no segments"):
        mac(x, cells, question=q, segments=torch.zeros(3, 5, dtype=torch.long))
    for options, message in (
        ({"steps": 0}, "steps=0"),
        ({"variant": "theirs"}, "variant='theirs'"),
        ({"context_dim": 6, "initial_memory": "question"}, "question of width 4 cannot be a memory of width 6"),
    ):
        with pytest.raises(ValueError, match=message):
            Mac(4, **options)
    with pytest.raises(ValueError, match="previous control must be fed"):
        ControlUnit(4, with_question=False)
    for options, message in (
        ({"project": False}, "there are no projected cells"),
        ({"attention_dim": 5, "sum_projected": True}, "width 5 cannot become a memory of width 4"),
        ({"merge": None}, "control of width 4 cannot meet interactions of width 8"),
    ):
        with pytest.raises(ValueError, match=message):
            ReadUnit(4, 4, **options)
    with pytest.raises(UnsupportedError, match="every step reads the whole question"):
        regard.create("mac", dim=4, causal=True)
