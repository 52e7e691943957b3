"""Every tensor shape the package talks about, named once.

Axes: `batch` rows of text, `seq` places in a row, `tok` tokens with that structure flattened away, `d_in` width of
the activation, `d_sae` latents, `nnz` nonzeros of a batch's latents, `vocab` token ids a model knows.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = Int[Tensor, "batch seq"]
Mask = Bool[Tensor, "batch seq"]
Logits = Float[Tensor, "batch seq vocab"]
PerPlace = Float[Tensor, "batch seq"]

Acts = Float[Tensor, "*lead d_in"]  # any leading axes: the public face
Rows = Float[Tensor, "tok d_in"]  # flattened: the inside
Part = Float[Tensor, "_ d_in"]  # one of several batches, each of its own length
Scores = Float[Tensor, "tok d_sae"]
PerToken = Float[Tensor, " tok"]
TokenInts = Int[Tensor, " tok"]

Weights = Float[Tensor, "d_sae d_in"]  # a row is a latent's direction
PerLatent = Float[Tensor, " d_sae"]
LatentMask = Bool[Tensor, " d_sae"]
LatentInts = Int[Tensor, " d_sae"]
Direction = Float[Tensor, " d_in"]

Values = Float[Tensor, " nnz"]
Places = Int[Tensor, " nnz"]
Starts = Int[Tensor, " rows_plus_one"]

Scalar = Float[Tensor, ""]
