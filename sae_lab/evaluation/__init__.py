"""What an SAE keeps of the model: on held-out text, by position, on a fine-tuned sibling, several SAEs at once."""

from .single import Evaluation, evaluate
