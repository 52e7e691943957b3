"""The sparse core: latents as nonzeros, choices, the two products that touch them, and the step that moves weights."""

from .adam import Adam
from .backends import backend, backend_of
from .choose import Chunks, Rule, above, batch_topk, column_topk, group_topk, topk
from .compiling import compiling
from .corner import corner
from .latents import Latents, Support, decode, dots, latent_sums, latent_totals, sums
from .mesh import Mesh, alone, mesh, token_mean, tokens, total
from .preacts import PreActs, encode
from .probe import choice_dtype
from .scratch import scratch
