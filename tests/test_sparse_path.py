"""No variant makes a gradient of all [tok, d_sae] numbers while few of them fire: backward's tensors are counted."""

import pytest
import torch
from test_every_sae import D_IN, TRAINED, batch_for, rows, small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lab.saes import Objective
from sae_lab.saes.topk import TopK
from sae_lab.sparse import latents
from sae_lab.sparse.scratch import largest

TOK, D_SAE = 1024, 256  # more tokens than latents, and of both far more than d_in and k
DENSE = TOK * D_SAE
FEW = DENSE // 3  # numbers: more than [d_sae, d_sae] has, and than all nonzeros


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def sparse(name):
    """A variant and a batch on which few of its latents fire, some of them dead."""
    sae, x = small(name, d_sae=D_SAE), rows(tok=TOK)
    while not hasattr(sae.cfg, "k") and sae.encode(x).l0 > 6:
        with torch.no_grad():
            sae.b_enc -= 0.1
    return sae, x


def made_by_backward(sae, x):
    """(numbers of the largest tensor that backward makes, numbers of the largest that forward keeps for it)."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = sae.objective(batch_for(sae, x))
    assert 0.5 < out.z.l0 < 8
    largest(reset=True)
    with Largest() as seen:
        sum(out.terms.values()).backward()
    return max(seen.numbers, largest(reset=True) // x.element_size()), max(kept)


@pytest.mark.parametrize("name", TRAINED)
def test_backward_makes_no_dense_gradient(name):
    made, kept = made_by_backward(*sparse(name))
    assert D_SAE * D_IN <= made < FEW, "backward made a tensor nearly as large as [tok, d_sae]"
    assert kept < FEW, "forward keeps a tensor nearly as large as [tok, d_sae] for backward"


class Densely(TopK):
    """TopK with one term more, of the dense latents."""

    def objective(self, batch) -> Objective:
        out = super().objective(batch)
        return out._replace(terms=out.terms | {"dense": 1e-3 * out.z.dense().mean()})


class Keeping(TopK):
    """TopK whose forward keeps all numbers for backward, if only as a mask."""

    def objective(self, batch) -> Objective:
        out = super().objective(batch)
        pre = (batch.x @ self.W_enc.T.detach()) > 0.5
        return out._replace(terms=out.terms | {"mask": (self.b_enc * pre).mean()})


def test_a_dense_gradient_would_be_seen(monkeypatch):
    sae, x = sparse("topk")
    for wrong in (Densely, Keeping):
        twin = wrong(sae.cfg)
        twin.load_state_dict(sae.state_dict())
        assert made_by_backward(twin, x)[0] >= DENSE
    assert made_by_backward(twin, x)[1] >= DENSE
    monkeypatch.setattr(latents, "DENSE_ABOVE", (0.0, 0.0))  # dense products over all latents that occur
    assert made_by_backward(sae, x)[0] >= FEW
