"""A model that is on a server: the same face, its config and tokenizer here, its weights there.

Unusual here: what a splice puts in place is computed here, from activations that are read first, and sent as rows. So
any function and any SAE can be spliced in, and no weights travel; cross-entropy and KL are taken where the logits are.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from sae_lab.models import there, traces
from sae_lab.models.edits import Edit, fixed
from sae_lab.models.lm import LM, Activations, Splice
from sae_lab.models.server import RemoteFailed, Server
from sae_lab.shapes import Acts, Ids, Logits, Mask, Rows
from sae_lab.sites import Site

OURS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}  # what a config says of this machine
AT_ONCE = 8192  # tokens a request: of an 8B model 67 MB a site in bfloat16


class RemoteLM(LM):
    """A decoder that is run by a server; made by `load_model(name, remote=True)`.

    What is read comes in `dtype`, cast there. Gradients come where the server runs requests beside the model.
    """

    remote = True

    def __init__(self, name: str, model: Any, tokenizer: Any, server: Server, dtype: torch.dtype, revision: str | None):
        super().__init__(name, model._module, tokenizer, model)
        self.server, self.revision, self._dtype = server, revision, dtype

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, on {self.server.host})"

    @property
    def device(self) -> torch.device:
        """Where activations arrive."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type in which activations are sent."""
        return self._dtype

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the name, revision and config: weights cannot be looked at from here."""
        config = {k: v for k, v in self.config.to_dict().items() if k not in OURS}
        said = json.dumps([self.name, self.revision, config], sort_keys=True, default=str)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def at_once(self) -> int:
        """Tokens that a request best asks for."""
        return AT_ONCE

    def rows(self, ids: Ids, sites: Iterable[str], mask: Mask, keep: Mask) -> dict[Site, Rows]:
        """As `read`, of the places in `keep` alone, which are picked and cast before anything is sent."""
        wanted, ids = [self._site(s) for s in sites], self._checked(ids, mask)
        with self._lock:
            found = traces.read(self._model, ids, set(wanted), self._eps, keep.cpu(), **self._sending())
        return {s: self._fit(found, s, (int(keep.sum()),)) for s in wanted}

    def read(self, ids: Ids, sites: str | Iterable[str], mask: Mask | None = None) -> dict[Site, Activations]:
        """As `LM.read`."""
        found = super().read(ids, sites, mask)
        return {s: self._fit({str(s): x}, s, tuple(ids.shape)) for s, x in found.items()}

    def _fit(self, found: dict[str, Any], site: Site, lead: tuple[int, ...]) -> Tensor:
        """Raises:
        RemoteFailed: if it is not what was asked for.
        """
        x, shape = found.get(str(site)), (*lead, self.d_in(site))
        if not isinstance(x, Tensor) or x.shape != shape or x.dtype != self._dtype:
            got = f"{tuple(x.shape)} in {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise RemoteFailed(f"{self.server.host} sent {got} for {site}, asked for {shape} in {self._dtype}.")
        return x.contiguous()

    def clean(self, ids: Ids, mask: Mask | None = None) -> None:
        """None: logits of a wide vocabulary are not sent to be sent back."""

    def splice(
        self,
        ids: Ids,
        sites: str | dict[str, Callable[[Acts], Acts]],
        fn: Callable[[Acts], Acts] | None = None,
        mask: Mask | None = None,
        where: Mask | None = None,
        clean: Logits | None = None,
        grad: bool = False,
        moved: Iterable[str] = (),
    ) -> Splice:
        """As `LM.splice`; each `fn` runs here, on what is read as `dtype`: a request a site, and one for the end.

        Raises:
            ValueError: as `LM.splice`; grad=True; a site that is read before an earlier splice has been written.
        """
        if grad:
            raise ValueError(f"{self.name} is remote: gradients of a splice need a model that is loaded here.")
        edits, behind = self._splices(sites, fn, moved)
        ids, real, where = self._places(ids, mask, where)
        changes: dict[Site, traces.Change] = {}
        for site, f in sorted(edits.items(), key=lambda pair: pair[0].order):
            if any(earlier.target.order >= site.order for earlier in changes):
                raise ValueError(f"{site} is read before {list(changes)[-1]} is written: splice them one at a time.")
            x = self._read(ids, site, changes)
            new = f(x)
            if new.shape != (*x.shape[:-1], self.d_in(site.target)):
                raise ValueError(f"The splice at {site} made {tuple(new.shape)} of {tuple(x.shape)}. Keep the shape.")
            changes[site] = there.held(new[where].detach(), where)
        with self._lock:
            found = traces.spliced(self._model, ids, changes, self._eps, behind, self._backend())
        numbers = {name: found.pop(name) for name in ("ce", "ce_clean", "kl")}
        return Splice.told(ids, where & self._predicts(ids, real), {s: found[str(s)] for s in behind}, **numbers)

    def logit_lens(self, vectors: Rows, site: str) -> Tensor:
        """As `LM.logit_lens`."""
        site = self._site(site)
        with self._lock:
            neurons = site.layer if site.part == "N" else None
            logits = traces.lens(self._model, vectors.detach().cpu(), neurons, self._backend())
        return logits - logits.mean(-1, keepdim=True)

    def write(
        self, ids: Ids, mask: Mask, first: dict, later: dict, u: Tensor, sampling: tuple, stops: Sequence[int]
    ) -> list[list[int]]:
        """The tokens of a whole generation, from one request; -1 in rows that have ended."""
        special, stops = torch.tensor(self.special_ids), torch.tensor(stops)
        made = {site: there.added(*edits) for site, edits in first.items()}
        rest = (u, sampling, special, stops, self._eps, self._backend())
        with self._lock:
            return [newest.tolist() for newest in traces.write(self._model, ids, mask, made, later, *rest)]

    def step(self, *_: Any) -> NoReturn:
        raise ValueError(f"{self.name} is remote: it writes a whole text in one request. Use generate().")

    def _read(self, ids: Ids, site: Site, changes: dict[Site, traces.Change]) -> Activations:
        with self._lock:
            found = traces.read(self._model, ids, {site}, self._eps, changes=changes, **self._sending())
        return self._fit(found, site, tuple(ids.shape))

    def _fitting(self, rows: Iterable[tuple[Edit, ...]]) -> list[tuple[Edit, ...]]:
        """Raises:
        ValueError: a strength that looks at the activations: what it looks with is not where the model is.
        """
        rows = super()._fitting(rows)
        if odd := next((edit for row in rows for edit in row if callable(edit.strength)), None):
            raise ValueError(
                f"An edit at {odd.site} has a strength that looks at the activations, and its SAE is not where "
                f'{self.name} is. Add a number of the direction (mode="add"), or load the model here.'
            )
        return rows

    def _changes(self, rows: Sequence[tuple[Edit, ...]], where: Mask, reach: Callable) -> dict[Site, Callable]:
        return {site: there.added(*edits) for site, edits in fixed(rows, where, reach).items()}

    def _backend(self) -> Any:
        said = {"repo_id": self.name, "revision": self.revision, "task": "text-generation"}
        return self.server.backend(f"nnsight.modeling.transformers.TransformersModel:{json.dumps(said)}")

    def _sending(self) -> dict[str, Any]:
        return {"kind": self._dtype, "backend": self._backend()}
