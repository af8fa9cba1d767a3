"""Swapped attentions come nearer to their teachers, and nothing else moves."""

import copy

import pytest
import torch
from torch.testing import assert_close

import regard
from regard.registry import UnsupportedError
from regard.swap import distill_attention, swap_attention
from tests.swap.models import IDS, RIGHT, Blocks, FusedAttention, bert, encoder, gpt2, llama, same, state


def pair(make, mechanism, **options):
    teacher = make()
    student = copy.deepcopy(teacher)
    swap_attention(student, mechanism, **options)
    return teacher, student


def numbers(count=5):
    return [torch.randn(4, 12, 24) for _ in range(count)]


def words(count=5):
    torch.manual_seed(3)
    mask = RIGHT.long().repeat(4, 1)
    return [{"input_ids": torch.randint(2, 50, (8, 12)), "attention_mask": mask} for _ in range(count)]


def ours():
    return regard.models.TransformerLM(50, 24, 2, 3, 16).eval()


@pytest.mark.parametrize(
    ("make", "mechanism", "options", "data", "factor"),
    [
        (encoder, "local", {"window": 1}, numbers, 0.5),
        (lambda: Blocks(FusedAttention(24, 3)).eval(), "longformer", {"window": 1}, numbers, 0.9),
        (bert, "longformer", {"window": 1}, words, 0.5),
        (bert, "local", {"window": 1}, words, 0.5),
        (llama, "window-1", {"layers": [0]}, words, 0.9),
        (llama, "window-1", {}, words, 0.9),
        (ours, "linear_transformer", {}, lambda: [batch["input_ids"] for batch in words()], 0.9),
    ],
)
def test_error_on_batches_kept_aside_falls(make, mechanism, options, data, factor):
    teacher, student = pair(make, mechanism, **options)
    report = distill_attention(teacher, student, data(), steps=20, lr=1e-2, held_out=2)
    assert report.ok
    assert report.steps == 20
    assert (report.batches, report.held_out) == (3, 2)
    assert all(row.after < factor * row.before for row in report.rows), str(report)


def test_the_error_is_squares_by_variance():
    teacher, student = pair(lambda: Blocks(FusedAttention(24, 3)).eval(), "local", window=1)
    data = numbers(2)
    inside = teacher.layers[0]["norm"](data[1])
    old, new = teacher.layers[0]["attn"](inside), student.layers[0]["attn"](inside)
    expected = (new - old).square().sum() / (old - old.mean((0, 1))).square().sum()
    row = distill_attention(teacher, student, data, steps=1).rows[0]
    assert row.before == pytest.approx(expected.item(), rel=1e-4)


def test_teacher_and_the_rest_of_the_student_stay():
    teacher, student = pair(bert, "longformer", window=1)
    student.train()
    for value in student.parameters():
        value.requires_grad_(False)
    before, mine = state(teacher), state(student)
    implementation = teacher.config._attn_implementation
    distill_attention(teacher, student, words(), steps=2)
    assert same(state(teacher), before)
    assert teacher.config._attn_implementation == implementation
    after = state(student)
    moved = {name for name, value in mine[0].items() if not torch.equal(value, after[0][name])}
    assert moved
    assert all(".attention.self.attention." in name for name in moved)
    assert after[1:] == mine[1:]
    assert not any(value.requires_grad or value.grad is not None for value in student.parameters())


def test_only_what_is_new():
    teacher, student = pair(bert, "longformer", window=1)
    report = distill_attention(teacher, student, words(2), steps=1, parameters="new")
    assert report.parameters == 2 * 3 * (24 * 24 + 24)  # of global tokens, in two layers
    teacher, student = pair(bert, "linformer", rank=4)
    before = state(student)[0]
    assert distill_attention(teacher, student, words(), steps=6, parameters="new").ok
    moved = {name for name, value in state(student)[0].items() if not torch.equal(value, before[name])}
    assert moved
    assert all("regard_core" in name for name in moved)
    teacher, student = pair(encoder, "local", window=1)
    with pytest.raises(UnsupportedError, match="no parameters of their own"):
        distill_attention(teacher, student, numbers(), steps=1, parameters="new")


def test_the_same_every_time():
    outs, data = [], numbers()
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        teacher, student = pair(encoder, "local", window=1)
        told = []
        distill_attention(
            teacher,
            student,
            data,
            steps=4,
            generator=torch.Generator().manual_seed(seed),
            callback=lambda step, error, told=told: told.append((step, error)),
        )
        outs.append((student(data[0]), told))
    assert torch.equal(outs[0][0], outs[1][0])
    assert outs[0][1] == outs[1][1]
    assert not torch.equal(outs[0][0], outs[2][0])
    assert [step for step, _ in outs[0][1]] == [1, 2, 3, 4]


def test_bfloat16_learns():
    teacher, student = pair(lambda: encoder().bfloat16(), "local", window=1)
    data = [batch.bfloat16() for batch in numbers()]
    report = distill_attention(teacher, student, data, steps=15, lr=1e-2)
    assert all(row.after < 0.7 * row.before for row in report.rows), str(report)
    assert {value.dtype for value in student.parameters()} == {torch.bfloat16}


def test_positions_may_differ():
    teacher, student = pair(bert, "longformer", window=1, max_length=40)
    assert distill_attention(teacher, student, words(), steps=5).ok
    teacher, student = pair(gpt2, "local", window=1, max_length=40)
    assert distill_attention(teacher, student, [IDS, IDS.flip(0), IDS], steps=5).ok


def test_padding_teaches_nothing():
    outs = []
    for token in (3, 7):
        torch.manual_seed(0)
        teacher, student = pair(bert, "longformer", window=1)
        data = [{name: value.clone() for name, value in batch.items()} for batch in words(3)]
        for batch in data:
            batch["input_ids"][batch["attention_mask"] == 0] = token
        report = distill_attention(teacher, student, data, steps=2)
        outs.append([(row.before, row.after) for row in report.rows])
    assert_close(torch.tensor(outs[0]), torch.tensor(outs[1]), rtol=1e-4, atol=0)


def test_an_error_leaves_the_student_as_it_was():
    teacher, student = pair(encoder, "local", window=1)
    before = state(student)

    def stop(step, error):
        if step == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        distill_attention(teacher, student, numbers(), steps=5, callback=stop)
    assert same(state(student), before)


def test_what_comes_no_nearer_keeps_its_numbers():
    teacher, student = pair(encoder, "local", window=1)
    swap_attention(student, "multi_head", layers=[1])
    before = state(student)
    report = distill_attention(teacher, student, numbers(), steps=3, lr=0.1)
    first, second = report.rows
    assert second.after == second.before < 1e-9
    assert not report.ok
    moved = {name for name, value in state(student)[0].items() if not torch.equal(value, before[0][name])}
    assert moved == set() if first.after == first.before else all("layers.0" in name for name in moved)


def test_what_cannot_be():
    teacher, student = pair(encoder, "local", window=1)
    data = numbers(2)
    with pytest.raises(UnsupportedError, match="no attention that was swapped"):
        distill_attention(teacher, teacher, data, steps=1)
    with pytest.raises(UnsupportedError, match="the teacher has a swapped attention there"):
        distill_attention(student, student, data, steps=1)
    with pytest.raises(UnsupportedError, match="the teacher has nothing there"):
        distill_attention(Blocks(FusedAttention(24, 3)), student, data, steps=1)
    with pytest.raises(ValueError, match="2 batches and held_out=2"):
        distill_attention(teacher, student, data, steps=1, held_out=2)
    with pytest.raises(ValueError, match="give one of the two"):
        distill_attention(teacher, student, data)
    with pytest.raises(ValueError, match='neither "attention" nor "new"'):
        distill_attention(teacher, student, data, steps=1, parameters="all")
    blocks = Blocks(FusedAttention(24, 3)).eval()
    lazy = copy.deepcopy(blocks)
    swap_attention(lazy, "local", window=1)
    lazy.layers[0]["attn"].attention.out_proj = blocks.layers[0]["attn"].proj
    with pytest.raises(ValueError, match="share parameters"):
        distill_attention(blocks, lazy, data, steps=1)


def test_seconds():
    teacher, student = pair(encoder, "local", window=1)
    report = distill_attention(teacher, student, numbers(), seconds=0.05)
    assert report.steps >= 1
    assert "squared error by variance on 1 others" in str(report)
    assert set(report.to_dict()) == {"rows", "steps", "batches", "held_out", "parameters", "ok"}
