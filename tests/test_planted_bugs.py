"""Bugs that SAE code is known for, planted on purpose: the test that should catch each one fails, and only then."""

import pytest
import test_every_sae as contract
import test_jumprelu
import torch
from torch import nn

from sae_lab.saes import REGISTRY, SAE, jumprelu
from sae_lab.sparse import PreActs, batch_topk, column_topk, topk


def ready(name):
    sae = contract.small(name)
    sae.calibrate([contract.rows(seed=5)])
    return sae


def slope(patch, wrong):
    """JumpReLU's pseudo-derivative, times something it should not have."""
    right = jumprelu._Step.backward

    def backward(ctx, grad):
        _, by_theta, _ = right(ctx, grad)
        return None, by_theta * wrong(ctx.saved_tensors[1], ctx.bandwidth), None

    patch.setattr(jumprelu._Step, "backward", staticmethod(backward))


def choice(patch, rule, other):
    """What stands where a variant asks for `rule`: `other(pre, amount)`."""
    right = PreActs.choose

    def choose(pre, asked, amount, **rest):
        return right(pre, *(other(pre, amount) if asked is rule else (asked, amount)), **rest)

    patch.setattr(PreActs, "choose", choose)


def no_theta(patch):
    """The gradient of theta is taken for that of its logarithm."""
    slope(patch, lambda theta, bandwidth: 1 / theta)


def bandwidth_twice(patch):
    slope(patch, lambda theta, bandwidth: 1 / bandwidth)


def k_for_the_whole_batch(patch):
    choice(patch, batch_topk, lambda pre, amount: (batch_topk, amount // pre.tok))


def along_the_wrong_axis(patch):
    """Each latent keeps its k best tokens, where each token should keep its k best latents."""
    choice(patch, topk, lambda pre, k: (column_topk, torch.full((pre.d_sae,), k)))


def threshold_not_saved(patch):
    def register(self, name, tensor, persistent=True):
        nn.Module.register_buffer(self, name, tensor, persistent and name != "threshold")

    patch.setattr(SAE, "register_buffer", register)


def threshold_not_folded(patch):
    for cls in REGISTRY.values():
        patch.setattr(cls, "in_units", SAE.in_units)
        patch.setattr(cls, "in_log_units", ())


def saved(name):
    contract.test_saving_keeps_the_function(ready(name))


def folded(name):
    contract.test_folding_a_scale_gives_the_same_sae_of_raw_activations(ready(name))


def counted(name):
    contract.test_l0_is_what_was_asked(ready(name))


def alone(name):
    contract.test_encode_is_one_token_at_a_time(ready(name))


def density(name):
    test_jumprelu.test_thresholds_learn_the_slope_that_a_normal_density_gives(0.2, 0.01)


def window(name):
    test_jumprelu.test_the_penalty_counts_pre_activations_on_either_side_of_a_threshold()


BY_THRESHOLD = ("batchtopk", "matryoshka", "mutual_choice", "feature_choice", "llama_scope")
BY_BATCH = ("batchtopk", "matryoshka", "mutual_choice", "feature_choice")
BY_TOKEN = ("topk", "gradient", "random", "pca")
CAUGHT = [  # the bug, the test that catches it, in whom
    (no_theta, density, ("jumprelu",)),
    (no_theta, window, ("jumprelu",)),
    (bandwidth_twice, density, ("jumprelu",)),
    (bandwidth_twice, window, ("jumprelu",)),
    (k_for_the_whole_batch, counted, BY_BATCH),
    (along_the_wrong_axis, alone, BY_TOKEN),
    (threshold_not_saved, saved, BY_THRESHOLD),
    (threshold_not_folded, folded, (*BY_THRESHOLD, "jumprelu")),
]


@pytest.mark.parametrize(
    ("bug", "check", "name"),
    [
        pytest.param(bug, check, name, id=f"{bug.__name__}-{check.__name__}-{name}")
        for bug, check, names in CAUGHT
        for name in names
    ],
)
def test_the_bug_is_caught(bug, check, name, monkeypatch):
    check(name)
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        check(name)


def test_every_variant_with_a_saved_threshold_is_on_the_list():
    saes = {name: ready(name) for name in contract.NAMES}
    assert {name for name, sae in saes.items() if "threshold" in sae.state_dict()} == set(BY_THRESHOLD)
