"""A language model as everything else sees it: read, splice, gradients, generate."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lab.models import there, traces
from sae_lab.models.edits import Edit, changes
from sae_lab.models.generation import Generation
from sae_lab.shapes import Acts, Ids, Logits, Mask, PerPlace, Rows, Scalar
from sae_lab.sites import PARTS, Site

Activations = Float[Tensor, "batch seq d_in"]


@dataclass(frozen=True)
class Splice:
    """What a splice did. All per place: `ce` and `kl` at place t are about the prediction of token t + 1, in nats.

    `counts` marks the places that a mean is taken over: the token was replaced (see `where` of `LM.splice`), and what
    follows it is a real token that is not special. `moved` has the squared distance from the clean run, summed over
    d_model, of the residuals that were asked for. Of a remote model `clean` and `logits` are None: they stay there.
    """

    ids: Ids
    clean: Logits | None
    logits: Logits | None
    counts: Mask
    moved: dict[Site, PerPlace] = field(default_factory=dict)

    @classmethod
    def told(cls, ids: Ids, counts: Mask, moved: dict[Site, PerPlace], **numbers: PerPlace) -> "Splice":
        """One whose logits stayed where the model is, so that its numbers are given."""
        made = cls(ids, None, None, counts, moved)
        vars(made).update(numbers)  # what the properties below would keep there
        return made

    @cached_property
    def ce(self) -> PerPlace:
        return ce(self.logits, self.ids)

    @cached_property
    def ce_clean(self) -> PerPlace:
        return ce(self.clean, self.ids)

    @cached_property
    def kl(self) -> PerPlace:
        """KL(clean || spliced)."""
        return kl(self.clean, self.logits)


class LM:
    """A decoder of the Llama family with its tokenizer; parameters are frozen. Made by `load_model`.

    Calls from several threads take turns.
    """

    remote = False  # whether the weights are on a server

    def __init__(self, name: str, module: torch.nn.Module, tokenizer: Any, model: Any = None):
        self.name, self.tokenizer, self.module = name, tokenizer, module
        self.config = module.config
        self.d_model: int = self.config.hidden_size
        self.n_layers: int = self.config.num_hidden_layers
        self.context: int = self.config.max_position_embeddings
        self.mlp_width: int = self.config.intermediate_size
        self.vocab: int = module.get_input_embeddings().weight.shape[0]
        marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}  # those of chats, too
        self.special_ids = tuple(sorted(marks | set(tokenizer.all_special_ids)))
        norm = there.mlp_norm(module.model.layers[0])
        self._eps: float = getattr(norm, "variance_epsilon", None) or norm.eps
        self._model = model or traces.wrap(module, tokenizer)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"LM({self.name!r}: {self.n_layers} layers, d_model {self.d_model}, context {self.context})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights and so of what is read."""
        return self.module.dtype

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that other weights do not have: of up to 64 numbers out of every parameter."""
        found = hashlib.sha256()
        for name, p in sorted(self.module.named_parameters()):
            some = p.detach().view(-1)[:: max(1, p.numel() // 64)][:64].float().cpu()
            found.update(f"{name}{tuple(p.shape)}{p.dtype}".encode() + some.numpy().tobytes())
        return found.hexdigest()[:16]

    @property
    def at_once(self) -> int:
        """Tokens that a forward pass best takes at a time: on a CPU few, so that what it makes stays in its caches and
        in memory used before (8,192 cost a quarter more per token than 2,048)."""
        return 2048 if self.device.type == "cpu" else 8192

    def sites(self, parts: Iterable[str] = PARTS) -> list[Site]:
        """Every site of the model, in the order in which it computes them."""
        return sorted((Site(f"L{i}{p}") for i in range(self.n_layers) for p in parts), key=lambda s: s.order)

    def d_in(self, site: str) -> int:
        """Width of the activations at a site. Raises as `read` does for a site the model lacks."""
        return self.mlp_width if self._site(site).part == "N" else self.d_model

    def encode(self, text: str | Sequence[str]) -> tuple[Ids, Mask]:
        """Token ids of texts, one row each, with one BOS in front where the tokenizer has one; padded on the right."""
        texts = [text] if isinstance(text, str) else list(text)
        bos = self.tokenizer.bos_token_id
        start = [] if bos is None else [bos]
        rows = [self.tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in texts]
        rows = [row if row[:1] == start else start + row for row in rows]  # a chat template brings its own
        if not rows or min(map(len, rows)) == 0:
            raise ValueError("An empty text holds no token to read. Give a text of at least one character.")
        width = max(map(len, rows))
        ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows])
        mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
        return ids, mask

    def special(self, ids: Ids) -> Mask:
        """Which tokens are the tokenizer's special ones (BOS, EOS, padding, chat marks)."""
        return torch.isin(ids, torch.tensor(self.special_ids, device=ids.device, dtype=ids.dtype))

    def read(self, ids: Ids, sites: str | Iterable[str], mask: Mask | None = None) -> dict[Site, Activations]:
        """Activations at sites from one forward pass that ends after the last of them; the head never runs.

        Rows are packed or padded on the right; `mask` marks real tokens. Activations at padding mean nothing. Since
        every token sees only what is to its left, padding on the right changes no other value.

        Raises:
            ValueError: a site the model lacks, an id outside the vocabulary, rows longer than the model's context, or
                padding that is not on the right.
        """
        wanted = [self._site(s) for s in ([sites] if isinstance(sites, str) else sites)]
        ids = self._checked(ids, mask)
        with self._lock:
            found = traces.read(self._model, ids, set(wanted), self._eps, **self._sending())
        return {s: found[str(s)] for s in wanted}

    def rows(self, ids: Ids, sites: Iterable[str], mask: Mask, keep: Mask) -> dict[Site, Rows]:
        """As `read`, of the places in `keep` alone."""
        return {s: a[keep.to(a.device)] for s, a in self.read(ids, sites, mask).items()}

    def clean(self, ids: Ids, mask: Mask | None = None) -> Logits | None:
        """The `logits` for several splices of one text to share; None where logits do not leave the model's place."""
        return self.logits(ids, mask)

    def logits(self, ids: Ids, mask: Mask | None = None) -> Logits:
        """The model's own predictions."""
        ids = self._checked(ids, mask)
        with self._lock:
            return traces.run(self._model, ids, {}, self._eps, **self._sending())[0]

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
        """Runs the model with activations replaced: `splice(ids, "L3R", fn)` or `splice(ids, {site: fn, ...})`.

        Each `fn` maps activations [batch, seq, d_in] to their replacement, and sees what earlier splices left;
        it must not run this model itself. At a TC
        site it reads the MLP's input and replaces the MLP's output. `where` marks the tokens that are replaced:
        by default every real token that is not special. `clean` takes the logits of an earlier clean run
        (`lm.logits(ids)`), so that several splices of one text share it. With `grad=True` the result keeps the graph
        from its numbers to the parameters inside `fn`. `moved` names residuals behind the splices to be compared with
        the clean run's.

        Raises:
            ValueError: as `read`; two splices that write the same place; a `fn` that changes the shape; a `moved` that
                is no residual behind all of them.
        """
        edits, behind = self._splices(sites, fn, moved)
        ids, real, where = self._places(ids, mask, where)
        changes, before = {s: _replace(s, f, where) for s, f in edits.items()}, {}
        with self._lock:
            if clean is None or behind:
                clean, before = traces.run(self._model, ids, {}, self._eps, residuals=behind)
            logits, after = traces.run(self._model, ids, changes, self._eps, grad, behind)
        far = {s: (after[s].float() - before[s].float()).square().sum(-1) for s in behind}
        return Splice(ids, clean, logits, where & self._predicts(ids, real), far)

    def _splices(self, sites: Any, fn: Any, moved: Iterable[str]) -> tuple[dict[Site, Any], list[Site]]:
        """(what is spliced where, the residuals behind all of them that are compared)."""
        edits = {self._site(s): f for s, f in ({sites: fn} if isinstance(sites, str) else sites).items()}
        if len({s.target for s in edits}) < len(edits):
            raise ValueError(
                f"Two of the splices at {', '.join(edits)} write the same place. Splice one of them at a time."
            )
        last, behind = max(s.target.order for s in edits), sorted(map(self._site, moved), key=lambda s: s.order)
        if any(s.part != "R" or s.order <= last for s in behind):
            raise ValueError(f"moved={behind}: only residuals behind {', '.join(edits)} move.")
        return edits, behind

    def _places(self, ids: Ids, mask: Mask | None, where: Mask | None) -> tuple[Ids, Mask, Mask]:
        """Ids that are fit to be read, which of them are real, and where a splice replaces."""
        ids = self._checked(ids, mask)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        return ids, real, real & ~self.special(ids) if where is None else where.to(ids.device)

    def gradients(
        self,
        ids: Ids,
        sites: str | Iterable[str],
        of: str | int | tuple[int, int] | Callable[[Logits], Scalar] = "ce",
        mask: Mask | None = None,
        at: Int[Tensor, " batch"] | None = None,
    ) -> Activations | dict[Site, Activations]:
        """How a number changes with the activations at a site, or at several (then a dict).

        `of` is "ce" (cross-entropy in nats, summed over real tokens that follow another and are not special); a token
        id (its logit at place `at` of each row, the last real one by default, summed over rows); two ids (the first's
        logit less the second's); or a function of the logits.

        Raises:
            ValueError: as `read`, and for an unknown `of`.
        """
        wanted = [self._site(s) for s in ([sites] if isinstance(sites, str) else sites)]
        ids = self._checked(ids, mask)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        measure = self._measure(of, ids, real, at)
        with self._lock:
            found = traces.gradients(self._model, ids, set(wanted), measure, **self._sending())
        if found is None:
            raise RuntimeError(
                f"{self.name} is run without an autograd graph where it is: gradients need a model that is loaded "
                "here, or a server that runs requests in the model's own process."
            )
        return found[wanted[0]] if isinstance(sites, str) else {s: found[s] for s in wanted}

    def generate(
        self,
        prompt: str | Sequence[str],
        edits: Sequence[Edit | Sequence[Edit] | None] = (None,),
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        top_p: float = 1.0,
        n: int = 1,
        seed: int = 0,
    ) -> Generation:
        """Continues prompts, one row for each prompt, edit and sample; iterate over it to see tokens as they come.

        An item of `edits` is one `Edit`, several that act together, or None. Temperature 0 takes the likeliest token.
        Sampling draws the same random numbers for every edit, so that rows differ by the edit alone.

        Raises:
            ValueError: as `read`; a prompt that leaves no room for `max_new_tokens` in the context.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = self._fitting([() if e is None else (e,) if isinstance(e, Edit) else tuple(e) for e in edits])
        return Generation(self, prompts, rows, max_new_tokens, temperature, top_p, n, seed)

    def edited(
        self,
        ids: Ids,
        edits: Sequence[Sequence[Edit]],
        mask: Mask | None = None,
        ends: Sequence[int] | None = None,
    ) -> Logits:
        """Predictions where each row has its own edits, as while `generate` writes that row.

        `ends`: how many tokens of each row are its prompt; by default all.

        Raises:
            ValueError: as `read`; an edit that does not fit its site.
        """
        ids = self._checked(ids, mask)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        ends = real.sum(1).tolist() if ends is None else ends
        reach = lambda row, edit: edit.reaches(ids.shape[1], ends[row])  # noqa: E731
        made = self._changes(self._fitting(map(tuple, edits)), real & ~self.special(ids), reach)
        with self._lock:
            return traces.run(self._model, ids, made, self._eps, **self._sending())[0]

    @torch.no_grad()
    def logit_lens(self, vectors: Float[Tensor, "rows d_in"], site: str) -> Float[Tensor, "rows vocab"]:
        """Logits that the head makes of vectors at a site, each taken for all of the last residual, less their mean.

        What lies between is left out: a direction's own effect on the logits. The final norm makes the vector's length
        mean nothing, and the order of the tokens is that of what it adds to any residual.
        """
        inner, site = self.module.model, self._site(site)
        x = vectors.to(self.device, self.dtype)
        x = inner.layers[site.layer].mlp.down_proj(x) if site.part == "N" else x
        logits = self.module.get_output_embeddings()(inner.norm(x)).float()
        return logits - logits.mean(-1, keepdim=True)

    def words(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, with the space in front that some tokenizers drop there."""
        texts = self.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        marked = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [f" {t}" if m and m[0] == "▁" and t[:1] != " " else t for t, m in zip(texts, marked)]

    def step(
        self, ids: Ids, cache: Any, mask: Bool[Tensor, "batch past"], positions: Ids, changes: dict
    ) -> Float[Tensor, "batch vocab"]:
        """Next-token logits of one more piece of text, continuing a key-value cache; what `generate` is made of."""
        with self._lock:
            return traces.step(self._model, ids, cache, mask, positions, changes, self._eps)

    def _site(self, name: str) -> Site:
        site = Site(name)
        if site.layer >= self.n_layers:
            raise ValueError(f"No site {site}: {self.name} has layers 0 to {self.n_layers - 1}.")
        return site

    def _fitting(self, rows: Iterable[tuple[Edit, ...]]) -> list[tuple[Edit, ...]]:
        rows = list(rows)
        for edit in (e for row in rows for e in row):
            site = self._site(edit.site)
            shape, width = tuple(edit.vector.shape), self.d_in(site.target)
            if shape[-1:] != (width,):
                raise ValueError(f"The edit's vector has shape {shape}, but {site.target} is {width} wide.")
        return rows

    def _checked(self, ids: Ids, mask: Mask | None) -> Ids:
        if not isinstance(ids, Tensor) or ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
            raise ValueError("Give ids (and a mask) of one shape, [batch, seq]: `ids, mask = lm.encode(texts)`.")
        if ids.shape[1] > self.context:
            raise ValueError(
                f"{ids.shape[1]} tokens a row, but the context of {self.name} is {self.context}. Cut the text into "
                f"pieces of at most {self.context} tokens."
            )
        odd = ids[(ids < 0) | (ids >= self.vocab)]
        if len(odd):
            raise ValueError(
                f"Token id {odd[0].item()} is outside the vocabulary of {self.name} (0 to {self.vocab - 1}). Encode "
                "the text with this model's own tokenizer (`lm.encode`); padding takes any valid id and a mask."
            )
        if mask is not None and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError(
                "The mask has real tokens to the right of padding. Pad rows on the right (`lm.encode` does)."
            )
        return ids.to(self.device)

    def _predicts(self, ids: Ids, real: Mask) -> Mask:
        """Places followed by a real token that is not special."""
        follows = (real & ~self.special(ids)).roll(-1, 1) & real
        follows[:, -1] = False
        return follows

    def _measure(self, of: Any, ids: Ids, real: Mask, at: Tensor | None) -> Callable[[Logits], Scalar]:
        if callable(of):
            return of
        if of == "ce":
            return there.ce_at(ids, self._predicts(ids, real))
        pair = (of,) if isinstance(of, int) else of
        if not isinstance(pair, tuple) or not all(isinstance(i, int) and 0 <= i < self.vocab for i in pair):
            raise ValueError(
                f"of={of!r} is unknown. Write 'ce', a token id, two ids (first less second) or a function of logits."
            )
        return there.logit_at(real.sum(1) - 1 if at is None else at.to(ids.device), pair)

    def _changes(self, rows: Sequence[tuple[Edit, ...]], where: Mask, reach: Callable) -> dict[Site, Callable]:
        return changes(rows, where, reach)

    def _sending(self) -> dict[str, Any]:
        """Where a trace is run, and in which precision what it found is sent: here, as it is."""
        return {}


def ce(logits: Logits, ids: Ids) -> PerPlace:
    """Cross-entropy in nats of the token that follows each place; 0 at a row's last place."""
    return there.ce(logits, ids)


def kl(clean: Logits, spliced: Logits) -> PerPlace:
    """KL(clean || spliced) in nats at each place."""
    return there.kl(clean, spliced)


def _replace(site: Site, fn: Callable[[Acts], Acts], where: Mask) -> traces.Change:
    def change(x: Tensor, old: Tensor) -> Tensor:
        new = fn(x)
        if new.shape != old.shape:
            raise ValueError(f"The splice at {site} made {tuple(new.shape)} of {tuple(old.shape)}. Keep the shape.")
        return torch.where(where[..., None], new.to(old), old)

    return change
