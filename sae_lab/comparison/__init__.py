"""Consistency: what several SAEs of one site have in common, most of all those that differ by their seed alone.

PW-MCC (arXiv:2505.20254) is a mean cosine; "shared" (arXiv:2501.16615) counts latents that encoder and decoder both
find again: 0.8 of the one and 40% of the other may be of the same SAEs. Beside each stands what random directions give.
"""

from .comparing import compare
from .result import Comparison
