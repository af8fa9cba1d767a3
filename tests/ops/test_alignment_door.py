"""What is let in, and what masked places hold then."""

import pytest
import torch

from regard.ops.alignment_door import admit_alignment


def test_masked_places_are_zero_and_the_others_as_they_were():
    msa, pair = torch.randn(1, 2, 3, 4), torch.randn(1, 3, 3, 2)
    seen, pairs = torch.rand(1, 2, 3) < 0.5, torch.rand(1, 3, 3) < 0.5
    spoilt = (t.masked_fill(~m[..., None], torch.inf) for t, m in ((msa, seen), (pair, pairs)))
    for got, given, mask in zip(admit_alignment(*spoilt, seen, pairs, 4, 2), (msa, pair), (seen, pairs), strict=True):
        assert bool((got[mask] == given[mask]).all())
        assert not got[~mask].any()
    assert admit_alignment(msa, pair, None, None, 4, 2) == (msa, pair)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 5)])
def test_other_alignments_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, sequences, residues, 4\)"):
        admit_alignment(torch.zeros(shape), torch.zeros(1, 3, 3, 2), None, None, 4, 2)
