"""The door to a language model: load it, read it, splice into it, differentiate it, let it write."""

from sae_lab.models.costs import splice_cost
from sae_lab.models.edits import Edit
from sae_lab.models.generation import Generation
from sae_lab.models.lm import LM, Splice
from sae_lab.models.loading import figures, load_model
from sae_lab.models.remote import RemoteLM
from sae_lab.models.server import RemoteFailed, Server
