"""What an SAE keeps of the model: on held-out text, by position, on a fine-tuned sibling, several SAEs at once."""

from .positions import Positions, by_position
from .single import Evaluation, evaluate
from .together import Together, evaluate_together
from .transfer import Transfer, transfer
