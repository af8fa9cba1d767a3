import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from regard.memory import LinearState, ModelMemory
from regard.models.slim_performer import SlimPerformerLM

KINDS = ("elu", "relu", "square", "softmax")


def made(kind="elu", *, post_norm=False, dtype=torch.float64, depth=2):
    torch.manual_seed(0)
    model = SlimPerformerLM(30, 16, depth, 2, 24, kind, post_norm=post_norm, dtype=dtype)
    return model, torch.randint(30, (2, 25)), torch.rand(2, 25) < 0.8


def slopes(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(("step", "keep"), [(5, None), (3, 3), (100, None)])
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(kind, post_norm, step, keep):
    model, tokens, mask = made(kind, post_norm=post_norm)
    whole, pieces = model.loss(tokens, mask), model.loss(tokens, mask, step=step, keep=keep)
    assert_close(pieces, whole, rtol=0, atol=1e-12)
    found, expected = slopes(model, 3 * pieces), slopes(model, 3 * whole)
    assert all(slope.abs().max() > 0 for slope in expected)
    assert_close(found, expected, rtol=0, atol=1e-11)


def test_the_loss_is_that_of_the_logits():
    model, tokens, mask = made()
    losses = F.cross_entropy(model(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert_close(model.loss(tokens, mask, step=8), losses[mask[:, 1:]].mean(), rtol=1e-7, atol=0)
    assert_close(model.loss(tokens), losses.mean(), rtol=1e-7, atol=0)


def test_nothing_that_is_kept_grows_with_the_length():
    model, _, _ = made(dtype=torch.float32)

    def kept(length):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(torch.randint(30, (2, length + 1)), step=8)
        node = loss.grad_fn
        assert list(node.kept) == [0]
        assert len(node.last) == 2
        return sum(sizes)

    assert kept(80) - kept(40) == 3 * 2 * 40  # tokens, targets and shares


def test_stored_sums_take_rounding_away():
    """Subtraction rounds at the size of the sums, which grow with the length."""
    model, _, _ = made(dtype=torch.float32)
    tokens = torch.randint(30, (1, 201))
    exact = slopes(model, model.loss(tokens))

    def gap(keep):
        found = slopes(model, model.loss(tokens, step=4, keep=keep))
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))

    assert gap(1) < 3e-5
    assert gap(1) < gap(None) < 1e-3


def test_autocast_is_the_same_backwards():
    model, tokens, _ = made(dtype=torch.float32)
    dtypes = []
    model.blocks[0].k_proj.register_forward_hook(lambda module, inputs, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        pieces = model.loss(tokens, step=12)
    model.zero_grad()
    pieces.backward()
    # two pieces forwards, then the last one rewound, and both once more
    assert dtypes == 5 * [torch.bfloat16]
    assert model.read_out.weight.grad.dtype == torch.float32


def test_frozen_weights_get_no_gradient():
    model, tokens, _ = made()
    model.token_embedding.requires_grad_(False)
    model.loss(tokens, step=8).backward()
    assert model.token_embedding.weight.grad is None
    assert model.read_out.weight.grad.abs().max() > 0


def test_weights_changed_in_between_are_noticed():
    model, tokens, _ = made("softmax")
    loss = model.loss(tokens, step=8)
    model.redraw()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_gradients_are_refused():
    model, tokens, _ = made()
    slope = torch.autograd.grad(model.loss(tokens, step=8) ** 2, model.read_out.bias, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_stream_is_forward():
    model, tokens, _ = made()
    memory, outs = model.memory(2), []
    for piece in tokens.split([10, 1, 1, 13], 1):
        logits, memory = model.stream(piece, memory)
        outs.append(logits)
    assert_close(torch.cat(outs, 1), model(tokens), rtol=0, atol=1e-12)
    assert isinstance(memory, ModelMemory)
    assert all(isinstance(layer, LinearState) for layer in memory.layers)


def test_positions_stand_beside_the_embedding():
    model, tokens, _ = made()
    x = model.embed(tokens, torch.tensor([0, 5]))
    assert_close(x[..., :8], model.token_embedding(tokens))
    for i in range(4):
        angle = (torch.arange(25).double() + 5) * 10000 ** (-2 * i / 8)
        assert_close(x[1, :, 8 + i], angle.sin(), rtol=0, atol=1e-5)
        assert_close(x[1, :, 12 + i], angle.cos(), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused():
    model, tokens, _ = made()
    for options in ({"step": 0}, {"keep": 2}, {"step": 4, "keep": 0}):
        with pytest.raises(ValueError, match="pieces have 1 token or more"):
            model.loss(tokens, **options)
    with pytest.raises(ValueError, match="dim=18 must be a multiple of 4"):
        SlimPerformerLM(30, 18, 2, 2, 24)
