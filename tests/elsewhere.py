"""What another tool makes of our files, and files of its own making: run by a Python that has that tool.

    python -I elsewhere.py TOOL FOLDER

FOLDER holds x.safetensors with activations, and ours/CASE with what we wrote. Every case is loaded by the tool's
public loader. The tool's own SAEs, their weights shaken so that decoder norms differ, are saved by its own saver as
theirs/CASE. What each makes of x is left in answers.safetensors, as "ours/CASE/z" and "ours/CASE/x_hat"; what was
refused in refused.json. It imports nothing of this package, because it runs where this package is not installed.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

D, F, K = 16, 48, 5


class Answers:
    """What a tool says of each case, kept until the end: one that fails leaves the others standing."""

    def __init__(self, folder):
        self.folder, self.tensors, self.refused = folder, {}, {}
        self.x = load_file(folder / "x.safetensors")["x"]

    def each(self, whose, cases):
        """Notes what every case's callable returns: latents, dense, and reconstructions."""
        for case, answer in cases.items():
            try:
                with torch.no_grad():
                    z, x_hat = answer(self.folder / whose / case)
                self.tensors |= {f"{whose}/{case}/z": z, f"{whose}/{case}/x_hat": x_hat}
            except Exception as error:  # the tool's, whatever it is: the test reads it
                self.refused[f"{whose}/{case}"] = f"{type(error).__name__}: {error}"

    def ours(self):
        return sorted(path.name for path in self.folder.glob("ours/*"))

    def leave(self):
        save_file(
            {name: t.detach().contiguous().clone() for name, t in self.tensors.items()},
            self.folder / "answers.safetensors",
        )
        (self.folder / "refused.json").write_text(json.dumps(self.refused))


@torch.no_grad()
def shaken(module):
    """The same with every weight moved, decoder norms between a third and three, and thresholds in plain sight."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if "threshold" in name:
            tensor.copy_(torch.rand(tensor.shape) / 2 + 0.1)
        elif tensor.is_floating_point():
            tensor += 0.2 * torch.randn(tensor.shape)
    W_dec = module.W_dec if hasattr(module, "W_dec") else module.decoder.weight.T
    W_dec *= (torch.linspace(1 / 3, 3, F)[torch.randperm(F)] / W_dec.norm(dim=1))[:, None]
    return module


def sae_lens(answers):
    """SAELens: SAE.load_from_disk, save_model and save_inference_model."""
    import sae_lens as lens
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    def loaded(folder, **more):
        sae = lens.SAE.load_from_disk(folder, **more)
        return sae.encode(answers.x), sae(answers.x)

    def saved(name, **config):
        def save(folder):
            sae = shaken(getattr(lens, name)(getattr(lens, name + "Config")(d_in=D, d_sae=F, **config)))
            sae.save_model(folder)
            return sae.encode(answers.x), sae(answers.x)

        return save

    def exported(name, training, **config):
        """Of the kinds that are trained as one and used as another: by what SAELens itself loads after its export."""

        def save(folder):
            sae = shaken(getattr(lens, name)(getattr(lens, name + "Config")(d_in=D, d_sae=F, k=K, **config)))
            sae.save_inference_model(folder)
            answer = loaded(folder)
            if training:
                sae.save_model(folder)
            return answer

        return save

    by_case = {case: loaded for case in answers.ours() if case != "layers.2"}
    by_case["layers.2"] = lambda folder: loaded(folder, converter=sparsify_disk_loader)
    answers.each("ours", by_case)
    transcoder = {"d_out": D, "apply_b_dec_to_input": False}
    theirs = {
        "standard": saved("StandardSAE"),
        "standard, not centred": saved("StandardSAE", apply_b_dec_to_input=False),
        "standard, layer norm": saved("StandardSAE", normalize_activations="layer_norm"),
        "standard, norm": saved("StandardSAE", normalize_activations="constant_norm_rescale"),
        "topk": saved("TopKSAE", k=K),
        "topk by norm": saved("TopKSAE", k=K, rescale_acts_by_decoder_norm=True),
        "jumprelu": saved("JumpReLUSAE"),
        "gated": saved("GatedSAE"),
        "transcoder": saved("Transcoder", **transcoder),
        "skip transcoder": saved("SkipTranscoder", **transcoder),
        "jumprelu transcoder": saved("JumpReLUTranscoder", **transcoder),
        "jumprelu skip transcoder": saved("JumpReLUSkipTranscoder", **transcoder),
        "standard in training": saved("StandardTrainingSAE"),
        "topk in training": saved("TopKTrainingSAE", k=K),
        "jumprelu in training": saved("JumpReLUTrainingSAE"),
        "gated in training": saved("GatedTrainingSAE"),
    }
    kinds = {"topk": {}, "batchtopk": {}, "matryoshka": {"matryoshka_widths": [16, F]}}
    names = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK"}
    for by_norm in (True, False):
        for kind, config in kinds.items():
            config = config | {"rescale_acts_by_decoder_norm": by_norm}
            name, word = f"{names[kind]}TrainingSAE", "by norm, " * by_norm
            theirs[f"{kind}, {word}exported"] = exported(name, False, **config)
            if kind != "topk":
                theirs[f"{kind}, {word}in training"] = exported(name, True, **config)
    answers.each("theirs", theirs)


def dictionary_learning(answers):
    """dictionary_learning: load_dictionary; trainSAE for the files, its torch.save for the shaken weights."""
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew
    from dictionary_learning.trainers import (
        gated_anneal,
        gdm,
        jumprelu,
        matryoshka_batch_top_k,
        p_anneal,
        standard,
        top_k,
    )
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

    def of(ae):
        z = ae.encode(answers.x)
        return z, ae.decode(z)

    def as_it_lies(folder):
        return of(AutoEncoder.from_pretrained(folder.with_name("relu") / "ae.pt", normalize_decoder=False))

    def saved(trainer, unset=False, **config):
        def save(folder):
            said = {
                "trainer": trainer,
                "activation_dim": D,
                "dict_size": F,
                "layer": 2,
                "lm_name": "tiny",
                "steps": 10**6,
            }
            with torch.enable_grad():
                told = said | {"device": "cpu"} | config
                trainSAE([answers.x.clone()] * 2, [told], 1, save_dir=str(folder), device="cpu")
            ae = config.get("dict_class", load_dictionary)
            ae = load_dictionary(str(folder / "trainer_0"), "cpu")[0] if ae is load_dictionary else ae(D, F)
            shaken(ae)
            if unset:
                ae.threshold.fill_(-1.0)
            torch.save({name: t.cpu() for name, t in ae.state_dict().items()}, folder / "trainer_0" / "ae.pt")
            return of(ae)

        return save

    by_case = {case: lambda folder: of(load_dictionary(str(folder), "cpu")[0]) for case in answers.ours()}
    answers.each("ours", by_case | {"relu, as it lies": as_it_lies})
    answers.each(
        "theirs",
        {
            "AutoEncoder": saved(standard.StandardTrainer),
            "AutoEncoder, p annealed": saved(p_anneal.PAnnealTrainer),
            "AutoEncoder of April": saved(standard.StandardTrainerAprilUpdate),
            "AutoEncoderNew": saved(standard.StandardTrainerAprilUpdate, dict_class=AutoEncoderNew),
            "GatedAutoEncoder": saved(gdm.GatedSAETrainer),
            "GatedAutoEncoder, annealed": saved(gated_anneal.GatedAnnealTrainer),
            "JumpReluAutoEncoder": saved(jumprelu.JumpReluTrainer),
            "AutoEncoderTopK": saved(top_k.TopKTrainer, k=K),
            "BatchTopKSAE": saved(BatchTopKTrainer, k=K),
            "BatchTopKSAE, unset": saved(BatchTopKTrainer, unset=True, k=K),
            "MatryoshkaBatchTopKSAE": saved(
                matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, k=K, group_fractions=[0.25, 0.75]
            ),
        },
    )
    answers.each(
        "again",
        {
            "AutoEncoderNew": lambda _: of(
                load_dictionary(str(answers.folder / "theirs" / "AutoEncoderNew" / "trainer_0"), "cpu")[0]
            )
        },
    )


def sparsify(answers):
    """sparsify: Sae.load_from_disk and save_to_disk."""
    from sparsify import Sae, SparseCoder, SparseCoderConfig

    def of(sae):
        out = sae(answers.x)
        values, index, _ = sae.encode(answers.x)
        return torch.zeros(len(answers.x), F).scatter(1, index, values), out.sae_out

    def saved(**config):
        def save(folder):
            sae = shaken(SparseCoder(D, SparseCoderConfig(**{"k": K, "num_latents": F} | config)))
            sae.save_to_disk(folder)
            return of(sae)

        return save

    answers.each("ours", {case: lambda folder: of(Sae.load_from_disk(folder)) for case in answers.ours()})
    answers.each(
        "theirs",
        {
            "topk": saved(),
            "topk, width by factor": saved(num_latents=0, expansion_factor=F // D),
            "topk, decoder as it lies": saved(normalize_decoder=False),
            "groupmax": saved(activation="groupmax", k=6),
            "transcoder": saved(transcode=True),
            "skip transcoder": saved(transcode=True, skip_connection=True),
            "groupmax skip transcoder": saved(activation="groupmax", k=6, transcode=True, skip_connection=True),
        },
    )


TOOLS = {"sae-lens": sae_lens, "dictionary-learning": dictionary_learning, "eai-sparsify": sparsify}

if __name__ == "__main__":
    os.environ |= {"WANDB_MODE": "disabled", "SPARSIFY_DISABLE_TRITON": "1"}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.cuda.is_bf16_supported = lambda *_, **__: False  # sparsify asks at import, also where there is no GPU
    said = Answers(Path(sys.argv[2]))
    TOOLS[sys.argv[1]](said)
    said.leave()
