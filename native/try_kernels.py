"""What a new wheel must do: load the kernels and attend with them, forward and backward, as plain softmax does."""

import torch

import regard
from regard.patterns import Causal, Global, Window

torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, 200, 16, requires_grad=True) for _ in range(3))
pattern = Causal() & (Window(16) | Global(2))
found, expected = (regard.attend(q, k, v, pattern, engine=engine) for engine in ("native", "dense"))
torch.testing.assert_close(found, expected)
for ours, theirs in zip(*(torch.autograd.grad(out.sin().sum(), (q, k, v)) for out in (found, expected)), strict=True):
    torch.testing.assert_close(ours, theirs)
print(f"{regard.explain(q, k, v, pattern, engine='native').engine} agrees with dense on {torch.__version__}")
