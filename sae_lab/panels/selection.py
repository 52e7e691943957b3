"""What panels look at together: a click in one moves the others."""

import traitlets as T


class Selection(T.HasTraits):
    """A run and latents of it; panels that are given one Selection follow one another.

    Attributes:
        run: its folder; "" for none.
        latent: the one that is looked at; -1 for none.
        latents: those that are marked, as by a lasso.
    """

    run = T.Unicode("")
    latent = T.Int(-1)
    latents = T.Tuple()

    def __repr__(self) -> str:
        marked = f", {len(self.latents):,} latents marked" if self.latents else ""
        return f"<selection: {self.run or 'no run'}, latent {self.latent if self.latent >= 0 else 'none'}{marked}>"
