"""Very small decoders with random weights and a byte-level tokenizer, for tests that need no trained model."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
}
WORDS = "the cat sat on a mat. a dog ran! did the cat see it? no, the dog hid. they were glad.\n"


def tokenizer(context: int = 64) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, <bos>, <eos> and <pad>."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS] * 3, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=context, padding_side="right", **names)


def save(folder: Path, family: str = "llama", seed: int = 0, context: int = 64) -> Path:
    """A model of a family with random weights, in Hugging Face's layout."""
    torch.manual_seed(seed)
    words = tokenizer(context)
    config = FAMILIES[family](
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=context,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if "norm" in name:  # as initialised, leaving the weight out would change nothing
            p.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
