"""Every trained objective once more, the plain way: dense [tok, d_sae] numbers, torch.topk, autograd, torch.optim.

A twin takes an SAE for its parameters, buffers and knobs alone (`p`), and no function of the package. It returns the
weighted loss terms and moves the running statistics as a step does. Written from the papers' equations; where one
leaves a choice open, the docstring of the variant says what was chosen. Knobs that are off by default stay off here.
"""

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cosine_similarity


def squares(e):
    return e.square().sum(1).mean()


def warm(batch, share):
    return min(1.0, batch.progress / share)


def annealed(first, p, batch):
    """K_t = ceil(max(1, r + (1 - r) t / T) K), with r K = first and T = k_anneal."""
    r = max(1.0, first / p.cfg.k)
    return math.ceil(max(1.0, r + (1 - r) * batch.progress / p.cfg.k_anneal) * p.cfg.k - 1e-9)


def pre_acts(p, x):
    return x @ p.W_enc.T if p.b_enc is None else x @ p.W_enc.T + p.b_enc


def decoded(p, z):
    return z @ p.W_dec + p.b_dec


def topk(pre, k):
    """The k largest positive numbers of each row, zeros elsewhere."""
    top = pre.topk(k, sorted=False)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def batch_topk(pre, n):
    """The n largest positive numbers of all, zeros elsewhere; the least of them, and how many each column has."""
    top = pre.relu().flatten().topk(n, sorted=False)
    z = torch.zeros(pre.numel(), dtype=pre.dtype).scatter(0, top.indices, top.values).view_as(pre)
    kept = top.indices[top.values > 0] % pre.shape[1]
    return z, top.values.detach()[top.values > 0].min(), kept.bincount(minlength=pre.shape[1])


def auxk(p, pre, missed, dead, k):
    """Dead latents reconstruct the residual, a constant, without a bias."""
    if not dead.any():
        return pre.new_zeros(())
    z = topk(pre.masked_fill(~dead, -math.inf), k)
    return p.cfg.aux_weight * squares(z @ p.W_dec - missed.detach())


def half(p):
    return p.cfg.k_aux or max(1, p.cfg.d_in // 2)


def spread(missed):
    return squares((missed - missed.mean(0)).detach())


def follow(threshold, least, momentum):
    new = torch.where(threshold == 0, least, momentum * threshold + (1 - momentum) * least)
    threshold.copy_(torch.where(least.isfinite(), new, threshold))


def relu(p, batch):
    """10.1: decoder norms are free, and what is penalised is z |d|."""
    z = pre_acts(p, batch.x).relu()
    price = p.cfg.l1_weight * warm(batch, 0.05)
    return {"mse": squares(decoded(p, z) - batch.target), "l1": price * (z * p.W_dec.norm(dim=1)).sum(1).mean()}


def topk_auxk(p, batch):
    """10.3."""
    pre = pre_acts(p, batch.x - p.b_dec)
    missed = batch.target - decoded(p, topk(pre, p.cfg.k))
    return {"mse": squares(missed), "auxk": auxk(p, pre, missed, batch.dead, half(p)) / spread(missed)}


def groupmax(p, batch):
    """The largest of each group."""
    pre = pre_acts(p, batch.x - p.b_dec)
    z = torch.cat([topk(group, 1) for group in pre.split(-(-p.cfg.d_sae // p.cfg.k), 1)], 1)
    return {"mse": squares(batch.target - decoded(p, z))}


def batchtopk(p, batch):
    """2."""
    pre = pre_acts(p, batch.x - p.b_dec)
    z, least, _ = batch_topk(pre, p.cfg.k * len(pre))
    follow(p.threshold, least, p.cfg.momentum)
    missed = batch.target - decoded(p, z)
    return {"mse": squares(missed), "auxk": auxk(p, pre, missed, batch.dead, p.cfg.k_aux)}


def matryoshka(p, batch):
    """10.4."""
    pre = pre_acts(p, batch.x - p.b_dec)
    z, least, _ = batch_topk(pre, p.cfg.k * len(pre))
    follow(p.threshold, least, p.cfg.momentum)
    x_hat, start = p.b_dec.expand_as(batch.target), 0
    errors = [squares(x_hat - batch.target)]
    for level in reversed(range(p.cfg.levels)):
        end = p.cfg.d_sae // 2**level
        x_hat = x_hat + z[:, start:end] @ p.W_dec[start:end]
        errors.append(squares(x_hat - batch.target))
        start = end
    aux = auxk(p, pre, batch.target - x_hat, batch.dead, p.cfg.k_aux)
    return {"mse": torch.stack(errors).mean(), "auxk": aux}


def gated(p, batch):
    """10.2."""
    u = (batch.x - p.b_dec) @ p.W_enc.T
    gate = u + p.b_enc
    z = (gate > 0) * (p.r_mag.exp() * u + p.b_mag).relu()
    opened = gate.relu()
    frozen = opened @ p.W_dec.detach() + p.b_dec.detach()
    return {
        "mse": squares(decoded(p, z) - batch.target),
        "l1": p.cfg.l1_weight * warm(batch, 0.05) * opened.sum(1).mean(),
        "aux": p.cfg.aux_weight * squares(frozen - batch.target),
    }


class Jump(torch.autograd.Function):
    """5.2: f = v H(v - theta), and its pseudo-derivatives."""

    @staticmethod
    def forward(ctx, v, theta, width):
        ctx.save_for_backward(v, theta)
        ctx.width = width
        return v * (v > theta)

    @staticmethod
    def backward(ctx, g):
        v, theta = ctx.saved_tensors
        window = (v - theta).abs() < ctx.width / 2
        return g * (v > theta), -(theta / ctx.width) * (g * window).sum(0), None


class Step(torch.autograd.Function):
    """5.2: H(v - theta), and its pseudo-derivatives."""

    @staticmethod
    def forward(ctx, v, theta, width):
        ctx.save_for_backward(v, theta)
        ctx.width = width
        return (v > theta).to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        v, theta = ctx.saved_tensors
        window = (v - theta).abs() < ctx.width / 2
        return None, -(g * window).sum(0) / ctx.width, None


def jumprelu(p, batch):
    """5."""
    v, theta = pre_acts(p, batch.x).relu(), p.log_threshold.exp()
    l0 = Step.apply(v, theta, p.cfg.bandwidth).sum(1).mean()
    x_hat = decoded(p, Jump.apply(v, theta, p.cfg.bandwidth))
    return {"mse": squares(x_hat - batch.target), "l0": p.cfg.l0_weight * warm(batch, 0.1) * l0}


def llama_scope(p, batch):
    """1.3: chosen by a |d|, kept as a; the error of a token is over its distance from the mean, not squared."""
    a, k = pre_acts(p, batch.x).relu(), annealed(p.cfg.k_init or p.cfg.d_in // 2, p, batch)
    index = (a * p.W_dec.norm(dim=1)).detach().topk(min(k, p.cfg.d_sae), sorted=False).indices
    z = torch.zeros_like(a).scatter(1, index, a.gather(1, index))
    distance = (batch.target - batch.target.mean(0)).norm(dim=1, keepdim=True).clamp(min=1e-4)
    return {"error": ((decoded(p, z) - batch.target).square() / distance).mean()}


@torch.no_grad()
def re_balance(p, z, batch):
    """When p falls, the price is multiplied by sum z^p over sum z^(next p), of the last batches."""
    start, falls, done = p.cfg.anneal_start, p.cfg.updates, int(p.updated)
    exponent = [1 - (1 - p.cfg.p_end) * i / falls for i in range(falls + 1)]
    over = (batch.progress - start) / (1 - start)
    due = 0 if over < 0 else min(falls, 1 + math.floor(falls * over))
    if done == falls:
        return exponent[done]
    if due > done + 1:
        p.sums.zero_()
    p.sums.copy_(p.sums.roll(-1, 0))
    for place, e in enumerate((exponent[done], exponent[max(due, done + 1)])):
        p.sums[-1, place] = z.pow(e).sum() / len(z)
    if due > done:
        p.balance.mul_(p.sums[:, 0].sum() / p.sums[:, 1].sum())
        p.sums.zero_()
        p.updated.fill_(due)
    return exponent[max(due, done)]


def p_anneal(p, batch):
    """10.5."""
    z = pre_acts(p, batch.x - p.b_dec).relu()
    exponent = re_balance(p, z, batch)
    price = p.cfg.l1_weight * warm(batch, 0.05) * p.balance
    return {"mse": squares(decoded(p, z) - batch.target), "lpp": price * z.pow(exponent).sum(1).mean()}


def zipf(p):
    """4.3: the density of each rank, 1 / (rank + shift)^zipf, k in all; what is over 1 goes to the others."""
    rank = (-p.density).argsort(stable=True).argsort() + 1
    weight = (rank.double() + p.cfg.shift) ** -p.cfg.zipf
    target, full = p.cfg.k * weight / weight.sum(), torch.zeros_like(rank, dtype=torch.bool)
    while (target > 1).any():
        full |= target >= 1
        target = torch.where(full, 1.0, weight * (p.cfg.k - full.sum()) / weight[~full].sum())
    return target.to(p.density)


def aux_zipf(p, pre, missed, law):
    """4.3: AuxK in which latents under the law count by the share that they lack."""
    short = (1 - p.density / law).relu()
    z = topk(pre * short, min(half(p), int((short > 0).sum())))
    return p.cfg.aux_weight * squares(z @ p.W_dec - missed.detach()) / spread(missed)


def count(p, fired, tok):
    """The mean density of the batches so far, or a moving average where that remembers less."""
    p.steps += 1
    p.latest.copy_(fired / tok)
    p.density.lerp_(p.latest, max((1 / p.steps).item(), 1 - p.cfg.momentum))


def mutual_choice(p, batch):
    """4."""
    pre = pre_acts(p, batch.x - p.b_dec)
    z, least, fired = batch_topk(pre, p.cfg.k * len(pre))
    return chosen(p, batch, pre, z, least, fired)


def chosen(p, batch, pre, z, least, fired):
    follow(p.threshold, least, p.cfg.momentum)
    missed = batch.target - decoded(p, z)
    terms = {"mse": squares(missed), "aux_zipf": aux_zipf(p, pre, missed, zipf(p))}
    count(p, fired, len(pre))
    return terms


def quotas(p, tok):
    """At least one token for each latent, the rest by the law and largest remainders."""
    share = (tok * zipf(p)).double() - 1
    share = share.clamp(min=0) * (p.cfg.k * tok - p.cfg.d_sae) / share.clamp(min=0).sum()
    whole = (share + 1e-9).floor()
    left = p.cfg.k * tok - p.cfg.d_sae - int(whole.sum())
    whole[(whole - share).argsort(stable=True)[:left]] += 1
    return whole.long() + 1


def feature_choice(p, batch):
    """4: each latent keeps its largest tokens; before, Mutual Choice."""
    pre = pre_acts(p, batch.x - p.b_dec)
    if batch.progress < p.cfg.mutual_share:
        z, cut, fired = batch_topk(pre, p.cfg.k * len(pre))
        return chosen(p, batch, pre, z, z.detach().masked_fill(z == 0, math.inf).amin(0), fired)
    rows = pre.detach().T.contiguous()  # a latent's tokens lie together
    cut = rows.sort(dim=1, descending=True).values.gather(1, quotas(p, len(pre))[:, None] - 1)
    kept = (rows >= cut) & (rows > 0)
    least = rows.masked_fill(~kept, math.inf).amin(1)
    return chosen(p, batch, pre, pre * kept.T, least, kept.sum(1))


def gradient(p, batch):
    """8: chosen by z + beta z |g d|, with g in units of its mean |g d| for a random d."""
    pre = pre_acts(p, batch.x - p.b_dec)
    with torch.no_grad():
        unit = 1 / (batch.grad.norm(dim=1).mean() * math.sqrt(2 / math.pi / p.cfg.d_in))
        p.per_grad.copy_(torch.where(p.per_grad == 0, unit, p.per_grad.lerp(unit, 1 - p.cfg.momentum)))
        index = (pre + p.cfg.beta * unit * pre * (batch.grad @ p.W_dec.T).abs()).topk(p.cfg.k, sorted=False).indices
    missed = batch.target - decoded(p, torch.zeros_like(pre).scatter(1, index, pre.gather(1, index).relu()))
    return {"mse": squares(missed), "auxk": auxk(p, pre, missed, batch.dead, half(p)) / spread(missed)}


def mutual_feature(p, batch):
    """9.1 on TopK, with one matching a step: 1 - the mean cosine of rows matched one to one, and half of it is ours."""
    pre = pre_acts(p, batch.x - p.b_dec)
    z = topk(pre, p.cfg.k)
    p.steps += 1
    uneven = (z.detach() > 0).sum(0) / len(z) / (p.cfg.k / p.cfg.d_sae) - 1
    p.uneven.copy_(uneven.abs().pow(3).mean())
    missed = batch.target - decoded(p, z)
    terms = {"mse": squares(missed), "auxk": auxk(p, pre, missed, batch.dead, half(p)) / spread(missed)}
    if not batch.peers:
        return terms
    apart = []
    for peer in batch.peers:
        cosine = cosine_similarity(p.W_dec.detach()[:, None], peer.W_dec.detach()[None], dim=2)
        mine, theirs = linear_sum_assignment(cosine.numpy(), maximize=True)
        apart.append(1 - cosine_similarity(p.W_dec[mine], peer.W_dec[theirs], dim=1).mean())
    ramp = (1 - math.cos(math.pi * warm(batch, p.cfg.ramp_share))) / 2
    return terms | {"mutual": p.cfg.weight * ramp * torch.stack(apart).mean() / (1 + len(apart))}


def temporal_mask(p, batch):
    """6."""
    seated = ~(p.masked & (batch.progress >= p.cfg.mask_warmup))
    z = pre_acts(p, batch.x).relu() * seated
    missed = batch.target - decoded(p, z)
    with torch.no_grad():
        lost = 2 * z * (missed @ p.W_dec.T) + z.square() * p.W_dec.square().sum(1)
        now = torch.stack([z.mean(0), (z > 0).to(z.dtype).mean(0), lost.mean(0)])
        p.averages.copy_(torch.where(seated, p.cfg.momentum * p.averages + (1 - p.cfg.momentum) * now, p.averages))
        p.seen.copy_(torch.where(seated, p.cfg.momentum * p.seen + (1 - p.cfg.momentum), p.seen))
        draw(p)
    price = p.cfg.l1_weight * warm(batch, 0.05)
    return {"mse": squares(missed), "l1": price * (z * p.W_dec.norm(dim=1)).sum(1).mean()}


def draw(p):
    """Who sits the next step out: with probability 1 - exp(-r (theta - importance) / theta), theta = mean + c std."""
    active, seen = p.averages[1].clamp(min=1e-12), p.seen.clamp(min=1e-12)
    importance = 0
    weights = p.cfg.by_magnitude, p.cfg.by_frequency, p.cfg.by_contribution
    for weight, part in zip(weights, (p.averages[0] / active, p.averages[1] / seen, p.averages[2].relu() / seen)):
        importance = importance + weight * part / part.mean().clamp(min=1e-12)
    theta = importance.mean() + p.cfg.c * importance.std(correction=0)
    chance = 1 - torch.exp(-p.cfg.r * (theta - importance).relu() / theta)
    p.steps += 1
    p.masked.copy_(torch.rand(p.cfg.d_sae) < chance.clamp(max=p.cfg.mask_limit))


def end_to_end(p, batch):
    """9.3, the kind "e2e"."""
    z = pre_acts(p, batch.x).relu()
    price = 1.5 if p.cfg.l1_weight is None else p.cfg.l1_weight
    return {"kl": batch.patched_kl(decoded(p, z)).kl, "l1": price / p.cfg.d_in * z.sum(1).mean()}


TWINS = {
    "relu": relu,
    "topk": topk_auxk,
    "groupmax": groupmax,
    "batchtopk": batchtopk,
    "gated": gated,
    "jumprelu": jumprelu,
    "matryoshka": matryoshka,
    "llama_scope": llama_scope,
    "p_anneal": p_anneal,
    "mutual_choice": mutual_choice,
    "feature_choice": feature_choice,
    "gradient": gradient,
    "mutual_feature": mutual_feature,
    "end_to_end": end_to_end,
    "temporal_mask": temporal_mask,
}


def dense_step(p, batch, lr):
    """A whole training step by the recipe of the SAE, whose loss it returns: clip, project, Adam, unit norm."""
    learned = [q for q in p.parameters() if q.requires_grad]
    adam = torch.optim.Adam(learned, lr, p.recipe.betas, p.recipe.eps, fused=True)

    def step(batch=batch):
        loss = sum(TWINS[p.name](p, batch).values())
        loss.backward()
        if p.recipe.clip:
            torch.nn.utils.clip_grad_norm_(learned, p.recipe.clip)
        with torch.no_grad():
            if p.recipe.unit_norm:
                p.W_dec.grad -= (p.W_dec.grad * p.W_dec).sum(1, keepdim=True) * p.W_dec
            adam.step()
            if p.recipe.unit_norm:
                p.W_dec /= p.W_dec.norm(dim=1, keepdim=True)
            if p.name == "jumprelu":
                p.log_threshold.clamp_(min=math.log(p.cfg.bandwidth / 2))
        adam.zero_grad()
        return loss.item()

    return step
