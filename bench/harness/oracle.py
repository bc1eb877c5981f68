"""The judge: float64 values and gradients, on the very inputs that are timed.

A sampling provider draws its own noise, so the oracle reads it off the sample. This noise must be
standard normal, and it determines all values and gradients.
"""

import functools
import math

import torch
import torch.nn.functional as F

# For statistics of n normals, in standard errors: one false alarm in 5e8 checks.
SIGMAS = 6.0
# Elements from which on a mean of products of normals is near enough to normal itself.
LEAST_CORRELATED = 128


class WrongResultError(Exception):
    """A provider's output is not what it should be; the message says by how much."""


def sample(mu, logvar, eps):
    return mu + torch.exp(0.5 * logvar) * eps


def log_density(x, mu, logvar):
    return -0.5 * ((x - mu) ** 2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(-1)


def squares(recon, x):
    return ((x - recon) ** 2).sum(-1)


def kl_standard(mu, logvar):
    return 0.5 * (mu**2 + torch.expm1(logvar) - logvar).sum(-1)


def bernoulli(logits, x):
    return -(x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)).sum(-1)


def laplace(recon, x, log_scale):
    return ((x - recon).abs() * math.exp(-log_scale) + log_scale + math.log(2)).sum(-1)


def poisson(log_rate, x):
    return -torch.distributions.Poisson(log_rate.exp()).log_prob(x).sum(-1)


def negative_binomial_terms(log_mean, log_theta, x):
    theta, s = log_theta.exp(), log_mean - log_theta
    nll = theta * F.softplus(s) + x * F.softplus(-s)
    return nll + torch.lgamma(theta) + torch.lgamma(x + 1) - torch.lgamma(x + theta)


def negative_binomial(log_mean, log_theta, x):
    return negative_binomial_terms(log_mean, log_theta, x).sum(-1)


def zero_inflated_negative_binomial(log_mean, log_theta, zero_logits, x):
    counted = F.logsigmoid(-zero_logits) - negative_binomial_terms(log_mean, log_theta, x)
    either = torch.logaddexp(F.logsigmoid(zero_logits), counted)
    return -torch.where(x == 0, either, counted).sum(-1)


def multinomial(logits, x):
    log_probs = torch.distributions.Multinomial(logits=logits, validate_args=False)
    constant = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    return -(constant + (x * log_probs.logits).sum(-1))


def categorical(logits, target):
    return -logits.log_softmax(-1).gather(-1, target.long()[..., None]).squeeze(-1)


def decode(z, weight1, bias1, weight2, bias2):
    hidden = (z @ weight1.T + bias1).clamp_min(0)
    return hidden @ weight2.T + bias2


def log_ratio(z, mu, logvar):
    """log p(z) - log q(z), both as densities of z."""
    zero = torch.zeros_like(z)
    return log_density(z, zero, zero) - log_density(z, mu, logvar)


def noise_of(z, mu, logvar):
    """The standard normals behind a sample, in float64."""
    z, mu, logvar = (t.detach().double() for t in (z, mu, logvar))
    return (z - mu) * torch.exp(-0.5 * logvar)


def check_noise(eps, again):
    """Mean, variance, lag-1 correlation and range of eps, and that a second draw differs."""
    n = eps.numel()
    flat = eps.flatten()
    error = 1 / math.sqrt(n)
    statistics = {
        "mean": (flat.mean(), SIGMAS * error),
        "variance - 1": (flat.square().mean() - 1, SIGMAS * math.sqrt(2) * error),
        "lag-1 correlation": ((flat[1:] * flat[:-1]).sum() / n, SIGMAS * error),
        "largest / 8": (flat.abs().max() / 8, 1.0),
    }
    for name, (value, bound) in statistics.items():
        if not abs(float(value)) <= bound:
            raise WrongResultError(f"noise: {name} is {float(value):.3g}, beyond {bound:.3g}")
    if eps.dim() == 3 and eps[0].numel() >= LEAST_CORRELATED:
        check_samples_differ(eps)
    if torch.equal(eps, again):
        raise WrongResultError("noise: two calls drew the same sample")


def check_samples_differ(eps):
    """The first of K samples is correlated with none of the others, as a repeated one is."""
    first, *others = eps.flatten(1)
    if others:
        greatest = float((torch.stack(others) @ first).abs().max() / first.numel())
        bound = SIGMAS / math.sqrt(first.numel())
        if not greatest <= bound:
            raise WrongResultError(
                f"noise: correlation of samples is {greatest:.3g}, beyond {bound:.3g}"
            )


def compare(name, got, want, tolerance):
    """Relative to the largest value, so that a zero among them does not matter."""
    if got is None or got.shape != want.shape:
        found = None if got is None else tuple(got.shape)
        raise WrongResultError(f"{name}: shape {found} instead of {tuple(want.shape)}")
    error = float((got.detach().double() - want).abs().max() / want.abs().max().clamp_min(1e-30))
    if not error <= tolerance:
        raise WrongResultError(f"{name}: relative error {error:.2g}, above {tolerance:.2g}")
    return error


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def backward(outputs, inputs, upstream):
    """The gradients of the inputs that want one; the timed backward pass is this, too.

    An output that is only shown has no gradient.
    """
    leaves = [t for t in inputs if t.requires_grad]
    if len(outputs) > 1 and upstream[0] is None:
        outputs, upstream = outputs[1:], upstream[1:]
    return torch.autograd.grad(outputs, leaves, upstream)


def cast_upstream(upstream, outputs):
    """Gradients in the dtype of each output: a textbook sum in bfloat16 is a bfloat16."""
    return [
        None if g is None else g.to(out.dtype) for g, out in zip(upstream, outputs, strict=True)
    ]


def answers(operation, inputs, upstream, **given):
    """(values, gradients) in float64."""
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    values = as_tuple(operation.exact(*exact, **given))
    gradients = ()
    if any(t.requires_grad for t in exact):
        if operation.outputs[0] == "shown":
            values = (values[0].detach(), *values[1:])
        gradients = backward(values, exact, cast_upstream(upstream, values))
    return [value.detach() for value in values], gradients


# One answer serves while the providers of a cell take turns: for all pairs the oracle takes longer
# than a provider. Where there is noise each provider draws its own.
kept_answers = functools.lru_cache(maxsize=1)(answers)


def check(operation, case, function, inputs, upstream):
    """Raise WrongResultError unless values, and gradients if the case has them, are right.

    Returns the largest relative error found.
    """
    kinds, tolerance = operation.outputs, operation.tolerance[case.dtype]
    outputs = as_tuple(function(*inputs))
    # Copies: the memory of outputs may be used again by the next call (CUDA graphs).
    kept = [out.detach().clone() for out in outputs]
    gradients = ()
    if case.backward:
        gradients = backward(outputs, inputs, cast_upstream(upstream, outputs))
        gradients = [g.detach().clone() for g in gradients]
    del outputs

    given = {}
    if operation.noisy:
        if operation.posterior:
            mu, logvar = operation.posterior(*inputs)
        else:
            by_name = dict(zip(operation.inputs, inputs, strict=True))
            mu, logvar = by_name["mu"], by_name["logvar"]
        given["eps"] = noise_of(kept[0], mu, logvar)
        again = as_tuple(function(*inputs))[0].detach().clone()
        check_noise(given["eps"], noise_of(again, mu, logvar))

    find = answers if given else kept_answers
    wanted, exact_gradients = find(operation, tuple(inputs), tuple(upstream), **given)
    errors = [
        compare(f"output {kind}", got, want, tolerance)
        for kind, got, want in zip(kinds, kept, wanted, strict=True)
    ]
    if case.backward:
        errors += [
            compare(f"gradient of {name}", got, want, tolerance)
            for name, got, want in zip(operation.gradients, gradients, exact_gradients, strict=True)
        ]
    return max(errors)
