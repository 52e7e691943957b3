"""One training step of another library, again and again: run by that library's own Python, one step per line read.

    python peer_step.py LIBRARY TOKENS D_IN D_SAE K THREADS

Stands alone: it imports nothing of this package, because it runs where this package is not installed. Every way is the
library's own trainer as its documentation uses it, on the same activations, with dead latents out of the picture.
"""

import sys


def sae_lens(x, d_sae, k):
    """SAELens: SAETrainer.step with a BatchTopKTrainingSAE."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=x.shape[1], d_sae=d_sae, k=k))
    config = SAETrainerConfig(total_training_samples=10**12, train_batch_size_samples=len(x), lr=1e-9, lr_end=1e-10)
    trainer = SAETrainer(config, sae, iter(lambda: x, None))
    return lambda: trainer.step(x)


def dictionary_learning(x, d_sae, k):
    """dictionary_learning: BatchTopKTrainer.update."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10**9, activation_dim=x.shape[1], dict_size=d_sae, k=k, layer=0, lm_name="", lr=1e-9, device="cpu"
    )
    steps = iter(range(1, 10**9))
    return lambda: trainer.update(next(steps), x)


def sparsify(x, d_sae, k):
    """sparsify: SparseCoder (TopK) with its Trainer's steps; the Trainer itself wants a language model around it."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k))
    adam = torch.optim.Adam(sae.parameters(), lr=1e-9)

    def step():
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


LIBRARIES = {"sae-lens": sae_lens, "dictionary-learning": dictionary_learning, "eai-sparsify": sparsify}


def main(library, *numbers):
    """Writes "ready", then the seconds of one step for every line that comes in."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    import torch

    tokens, d_in, d_sae, k, threads = map(int, numbers)
    torch.set_num_threads(threads)
    torch.cuda.is_bf16_supported = lambda *_, **__: False  # sparsify asks at import, also where there is no GPU
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, d_in, generator=rng) * (torch.rand(tokens, 1, generator=rng) + 0.5) / d_in**0.5
    step = LIBRARIES[library](x, d_sae, k)
    step()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        step()
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
