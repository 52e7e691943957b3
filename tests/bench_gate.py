"""What a gate costs that leaves the decoder's norms out, on synthetic weights: python tests/bench_gate.py

A Llama Scope file as its trainer reads it, and as a loader does that scales the threshold with the input and does not
multiply pre-activations by the decoder's norms (SAELens 6.54.12's, by its source). The dictionary is that of planted
data; decoder rows are 1.5 long on average, whichever they are.
"""

import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import sae_lab as sl

D, F, K, TOKENS = 256, 2048, 20, 4096

if __name__ == "__main__":
    torch.manual_seed(0)
    planted = sl.toys.Planted(d_in=D, features=F, k=K)
    x = planted.next(TOKENS)["L0R"].x
    norm = x.norm(dim=1).mean().item()
    s = math.sqrt(D) / norm
    rows = planted.dictionary
    norms = 1.5 * torch.exp(0.25 * torch.randn(F))
    pre = s * x @ rows.T
    threshold = ((pre * norms).flatten().topk(K * TOKENS).values[-1] / s).item()
    hook = "blocks.0.hook_resid_post"
    said = {"d_model": D, "d_sae": F, "act_fn": "jumprelu", "jump_relu_threshold": threshold, "top_k": K}
    said |= {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm}}
    said |= {"hook_point_in": hook, "hook_point_out": hook, "sparsity_include_decoder_norm": True}
    tensors = {"encoder.weight": rows, "encoder.bias": torch.zeros(F), "decoder.bias": torch.zeros(D)}
    tensors["decoder.weight"] = (rows * norms[:, None]).T.contiguous()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        (Path(folder) / "hyperparams.json").write_text(json.dumps(said))
        save_file(tensors, Path(folder) / "checkpoints" / "final.safetensors")
        ours = sl.load_sae(folder)
    z = pre * (pre > threshold * s)
    x_hat = z @ (rows * norms[:, None]) / s
    found = ours(x)
    print(f"decoder norms {norms.mean():.2f} +- {norms.std():.2f}")
    print(f"L0 {ours.encode(x).l0:.1f} as trained, {(z > 0).sum(1).float().mean():.1f} without the norms")
    print(f"reconstructions move by {(x_hat - found).norm() / found.norm():.0%} of their length")
