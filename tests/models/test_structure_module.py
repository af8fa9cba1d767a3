import pytest
import torch
from torch.testing import assert_close

from regard.models.alphafold_heads import structure_losses
from regard.models.residue_atoms import residue_tables
from regard.models.structure_module import StructureModule
from regard.models.structure_truth import ProteinTruth, all_atoms, nearest_names, pseudo_beta, work_out
from regard.ops import frames as rigid
from regard.ops.frames import Frames, quaternion_to_rotation


def module(depth=3, seed=0, **options):
    torch.manual_seed(seed)
    made = StructureModule(12, 6, depth, num_heads=2, head_dim=4, torsion_dim=8, dropout=0.0, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def inputs(length=20, batch=1, seed=0, dtype=torch.float32):
    make = torch.Generator().manual_seed(seed)
    single = torch.randn(batch, length, 12, generator=make, dtype=torch.float64).to(dtype)
    pair = torch.randn(batch, length, length, 6, generator=make, dtype=torch.float64).to(dtype)
    return single, pair, torch.arange(length).expand(batch, -1) % 20


def truth_of(made, names=37):
    nothing = torch.zeros(*made.single.shape[:1], 1, made.single.shape[1], dtype=torch.long)
    return ProteinTruth(made.atoms.detach()[:, :, :names], made.atom_mask[:, :, :names], nothing, nothing.bool())


def losses(made, truth, sequence, mask=None, training=False):
    mask = torch.ones_like(sequence, dtype=torch.bool) if mask is None else mask
    index = torch.arange(sequence.shape[1]).expand_as(sequence)
    logits = torch.zeros(*sequence.shape, 50)
    return structure_losses(made, logits, truth, sequence, index, mask, residue_tables(), training)


def test_the_whole_fold_turns_with_its_first_frames(monkeypatch):
    """Nothing in it knows where it is: started elsewhere, it ends elsewhere, and is the same shape."""
    fold, given = module().double(), inputs(dtype=torch.float64)
    plain = fold(*given)
    turn = quaternion_to_rotation(torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64))
    shift = torch.tensor([30.0, -20.0, 5.0], dtype=torch.float64)

    def elsewhere(*shape, like):
        start = rigid.identity(*shape, like=like)
        return Frames(turn.expand_as(start.rotation), (shift / 10).expand_as(start.translation))

    monkeypatch.setattr("regard.models.structure_module.identity", elsewhere)
    moved = fold(*given)
    expected = (plain.atoms @ turn.T + shift).masked_fill(~plain.atom_mask[..., None], 0.0)
    assert_close(moved.atoms, expected, rtol=0, atol=1e-4)
    assert_close(moved.single, plain.single, rtol=0, atol=1e-4)
    assert_close(moved.trace.rotation, turn @ plain.trace.rotation, rtol=0, atol=1e-4)


def test_a_new_module_leaves_all_frames_at_the_origin():
    made = StructureModule(12, 6, 2, num_heads=2)(*inputs())
    assert_close(made.trace.translation, torch.zeros(2, 1, 20, 3))
    assert_close(made.trace.rotation, torch.eye(3).expand(2, 1, 20, 3, 3))


def test_no_gradient_passes_through_earlier_rotations(monkeypatch):
    fold, seen = module(depth=3), []
    original = fold.attention.update

    def noted(single, pair, frames, mask):
        seen.append((frames.rotation.requires_grad, frames.translation.requires_grad))
        return original(single, pair, frames, mask)

    monkeypatch.setattr(fold.attention, "update", noted)
    made = fold(*inputs())
    assert seen == [(False, False), (False, True), (False, True)]
    assert made.trace.rotation.requires_grad  # but those that come out teach


def test_padding_changes_nothing_even_if_it_is_no_number():
    fold = module().double()
    single, pair, sequence = inputs(9, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, True, True, True, False, False]])
    kept = slice(1, 7)
    short = fold(single[:, kept], pair[:, kept, kept], sequence[:, kept])
    single[:, ~mask[0]], pair[:, ~mask[0]] = torch.nan, torch.nan
    pair[:, :, ~mask[0]] = torch.nan
    out = fold(single, pair, sequence, mask=mask)
    assert_close(out.atoms[:, kept], short.atoms, rtol=0, atol=1e-9)
    assert out.atoms.isfinite().all()


def test_every_parameter_is_taught():
    fold, given = module(), inputs()
    target = truth_of(module(seed=1)(*given))
    made = fold(*given)
    sum(losses(made, target, given[2])).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in fold.named_parameters()
        if n != "attention.pair_bias.bias"
    )


def test_the_truth_itself_has_no_error_and_its_mirror_image_has():
    fold, given = module(depth=1), inputs()
    with torch.no_grad():
        made = fold(*given)
    for names in (37, 5):
        exact = losses(made, truth_of(made, names), given[2])
        assert abs(float(exact.fape) - 1e-3) < 1e-4
        mirrored = truth_of(made, names)
        mirrored = mirrored._replace(atoms=mirrored.atoms * torch.tensor([1.0, 1.0, -1.0]))
        assert float(losses(made, mirrored, given[2]).fape) > 0.05


def test_names_of_twins_do_not_matter():
    fold, (single, pair, sequence) = module(depth=1), inputs()
    made, tables = fold(single, pair, sequence), residue_tables()
    target = truth_of(made)
    twin = tables.twin[sequence]
    renamed = target._replace(atoms=target.atoms.take_along_dim(twin[..., None], -2))
    assert (renamed.atoms - target.atoms).abs().max() > 1.0
    assert_close(losses(made, renamed, sequence), losses(made, target, sequence))
    found, _ = nearest_names(renamed.atoms, renamed.atom_mask, made.atoms, sequence, tables)
    assert_close(found, target.atoms)


def test_what_is_not_known_changes_no_loss():
    fold, (single, pair, sequence) = module(depth=1), inputs()
    with torch.no_grad():
        made = fold(single, pair, sequence)
    target = truth_of(module(depth=1, seed=3)(single, pair, sequence))
    known = target.atom_mask.clone()
    known[:, 4], known[:, 7, 5:] = False, False
    garbage = target.atoms.masked_fill(~known[..., None], torch.nan)
    clean = target.atoms.masked_fill(~known[..., None], 3.0)
    parts = [losses(made, target._replace(atoms=atoms, atom_mask=known), sequence) for atoms in (garbage, clean)]
    assert_close(parts[0], parts[1])
    assert all(part.isfinite() for part in parts[0])
    mask = torch.arange(20)[None] < 15
    hidden = losses(
        made, target._replace(atoms=target.atoms.masked_fill(~mask[..., None, None], torch.inf)), sequence, mask
    )
    assert all(part.isfinite() for part in hidden)
    none = target._replace(atom_mask=torch.zeros_like(known))
    assert float(losses(made, none, sequence).fape) == 0.0


def test_frames_of_the_truth_are_those_that_built_it():
    made = module(depth=1)(*inputs())
    sequence = inputs()[2]
    atoms, known = all_atoms(truth_of(made))
    found = work_out(atoms, known, sequence, torch.arange(20)[None], residue_tables())
    assert not found.group_mask[..., 1:3].any()
    assert (found.group_mask[..., 3:].sum(-1) == 1 + residue_tables().chi_exists[sequence].sum(-1)).all()
    for kind in ("rotation", "translation"):
        built = getattr(made.groups, kind)[found.group_mask]
        assert_close(getattr(found.groups, kind)[found.group_mask], built, rtol=0, atol=1e-4)


def test_pseudo_beta_is_the_alpha_where_there_is_no_beta():
    atoms = torch.arange(30.0).view(1, 2, 5, 3)
    known = torch.tensor([[[True, True, True, True, True], [True, True, True, False, True]]])
    points, there = pseudo_beta(atoms, known)
    assert_close(points, torch.stack((atoms[:, 0, 3], atoms[:, 1, 1]), 1))
    assert there.all()
    known[0, 1, 1] = False
    assert pseudo_beta(atoms, known)[1].tolist() == [[True, False]]


def test_a_tenth_of_the_proteins_is_not_clamped_in_training():
    given = inputs(batch=1)
    with torch.no_grad():
        made = module(depth=1)(*given)
    far = truth_of(made)
    far = far._replace(atoms=far.atoms * 20)
    clamped = float(losses(made, far, given[2]).auxiliary)
    torch.manual_seed(0)
    drawn = [float(losses(made, far, given[2], training=True).auxiliary) for _ in range(60)]
    free = sum(loss > clamped + 0.1 for loss in drawn)
    assert 1 <= free <= 15
    assert sum(abs(loss - clamped) < 1e-5 for loss in drawn) == 60 - free


def test_refusals():
    fold = module()
    single, pair, sequence = inputs()
    with pytest.raises(ValueError, match=r"pair has shape .*expected \(1, 20, 20, 6\)"):
        fold(single, pair[:, 1:], sequence)
    with pytest.raises(ValueError, match=r"sequence has shape \(1, 19\), expected \(1, 20\)"):
        fold(single, pair, sequence[:, 1:])
    with pytest.raises(ValueError, match="at least 1 of each"):
        StructureModule(12, 6, 0)


NAMES = {
    "single_norm": "layer_norm_s",
    "pair_norm": "layer_norm_z",
    "enter": "linear_in",
    "attention_norm": "layer_norm_ipa",
    "attention.query": "ipa.linear_q",
    "attention.key_value": "ipa.linear_kv",
    "attention.query_points": "ipa.linear_q_points",
    "attention.key_value_points": "ipa.linear_kv_points",
    "attention.pair_bias": "ipa.linear_b",
    "attention.output": "ipa.linear_out",
    "transition.layers.0": "transition.layers.0.linear_1",
    "transition.layers.1": "transition.layers.0.linear_2",
    "transition.last": "transition.layers.0.linear_3",
    "transition_norm": "transition.layer_norm",
    "backbone_update": "bb_update.linear",
    "torsions.now": "angle_resnet.linear_in",
    "torsions.start": "angle_resnet.linear_initial",
    "torsions.inner.0": "angle_resnet.layers.0.linear_1",
    "torsions.inner.1": "angle_resnet.layers.1.linear_1",
    "torsions.outer.0": "angle_resnet.layers.0.linear_2",
    "torsions.outer.1": "angle_resnet.layers.1.linear_2",
    "torsions.output": "angle_resnet.linear_out",
}


def test_equals_hugging_faces_structure_module_with_the_same_weights_and_constants():
    esmfold = pytest.importorskip("transformers.models.esm.modeling_esmfold")
    config = pytest.importorskip("transformers.models.esm.configuration_esm").StructureModuleConfig
    constants = pytest.importorskip("transformers.models.esm.openfold_utils").residue_constants
    torch.manual_seed(0)
    sizes = {"sequence_dim": 12, "pairwise_dim": 6, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2, "num_blocks": 3}
    theirs = esmfold.EsmFoldStructureModule(config(**sizes)).eval()
    ours = module()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        ours.attention.point_weights.copy_(theirs.ipa.head_weights)
    for our_name, their_name in NAMES.items():
        ours.get_submodule(our_name).load_state_dict(theirs.get_submodule(their_name).state_dict())
    default = torch.tensor(constants.restype_rigid_group_default_frame[:20])
    ours.table_rotation[:20], ours.table_translation[:20] = default[..., :3, :3], default[..., :3, 3]
    single, pair, _ = inputs(batch=2)
    sequence = torch.stack((torch.arange(20), torch.arange(20).flip(0)))
    slots = torch.tensor(
        [
            [
                constants.restype_name_to_atom14_names[constants.restype_1to3[r]].index(a) if a else 0
                for a in _slot_names(r)
            ]
            for r in constants.restypes
        ]
    )
    positions = torch.tensor(constants.restype_atom14_rigid_group_positions[:20])
    ours.table_position[:20] = positions.take_along_dim(slots[..., None], 1)
    mask = torch.arange(20).expand(2, 20) < torch.tensor([[20], [15]])
    made = ours(single, pair, sequence, mask=mask)
    expected = theirs({"single": single, "pair": pair}, sequence, mask.float())
    assert_close(made.single[mask], expected["single"][mask], rtol=1e-5, atol=1e-5)
    assert_close(made.angles[:, mask], expected["angles"][:, mask], rtol=1e-4, atol=2e-5)
    assert_close(made.trace.translation[:, mask], expected["frames"][..., 4:][:, mask], rtol=1e-5, atol=1e-4)
    atoms = made.atoms.take_along_dim(ours.tables.atom[sequence][..., None], -2)
    theirs_here = expected["positions"][-1].take_along_dim(slots[sequence][..., None], -2)
    there = ours.tables.exists[sequence] & mask[..., None]
    assert_close(atoms[there], theirs_here[there], rtol=1e-5, atol=1e-4)


def _slot_names(letter):
    """Our atoms in the order of their slots, and nothing behind them."""
    from regard.models.residue_atoms import residue_atoms

    names = [atom.name for atom in residue_atoms(letter)]
    return names + [""] * (14 - len(names))
