"""The floq and quantile critics once more in plain NumPy, as published: loops, float64, no sharing."""

import numpy as np
from scipy.stats import norm


def histogram(z, low, high, num_edges, sigma):
    """Mass of a Gaussian around z in each bin, renormalised on the support, from SciPy's normal distribution."""
    edges = np.linspace(low, high, num_edges)
    cdf = norm.cdf(edges, loc=z, scale=sigma * (edges[1] - edges[0]))
    return np.diff(cdf) / (cdf[-1] - cdf[0])


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, scale, shift):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale + shift


def body(net, member, x):
    """What follows the first pre-activation. Plain: activation, linear for each hidden layer, then the head. Residual:
    activation, then x + block(x) with blocks of (linear, activation), then the head."""
    pick = lambda leaf: np.asarray(leaf)[member].astype(np.float64)  # noqa: E731
    apply = lambda linear, x: x @ pick(linear.weight) + pick(linear.bias)  # noqa: E731

    def activated(activation, x):
        norm = lambda x: layer_norm(x, pick(activation.norm.scale), pick(activation.norm.shift))  # noqa: E731
        return norm(gelu(x)) if activation.norm_last else gelu(norm(x))

    if not hasattr(net.body, "blocks"):
        for activation, linear in zip(net.body.activations, net.body.linears, strict=True):
            x = apply(linear, activated(activation, x))
        return x[0]
    x = activated(net.body.entry_activation, x)
    for block in net.body.blocks:
        y = x
        for linear, activation in block:
            y = activated(activation, apply(linear, y))
        x = x + y
    return apply(net.body.head, x)[0]


def velocity(net, member, obs, act, z, t, low, high):
    """v(t, z | s, a): one network over the concatenation of s, a, the histogram of z and cos(t)."""
    c = net.config
    inputs = np.concatenate([obs, act, histogram(z, low, high, c.num_bins, c.sigma), [np.cos(t)]])
    weight = np.concatenate([np.asarray(net.entry.weight_x), np.asarray(net.entry.weight_y)], axis=1)[member]
    return body(net, member, inputs @ weight.astype(np.float64) + np.asarray(net.entry.bias, np.float64)[member])


def integrate(net, member, obs, act, z, steps, low, high):
    for i in range(steps):
        z = z + velocity(net, member, obs, act, z, i / steps, low, high) / steps
    return z


def support(r_min, r_max, discount):
    return (r_min - 0.01) / (1 - discount), (r_max + 0.01) / (1 - discount)


def target(net, reward, bootstrap, next_obs, next_acts, z_0, steps, how, low, high):
    members = range(net.entry.bias.shape[0])
    values = [
        how([integrate(net, e, next_obs, act, z, steps, low, high) for e in members])
        for act, z in zip(next_acts, z_0, strict=True)
    ]
    return reward + bootstrap * np.mean(values)


def losses(critic, obs, act, y, z_0, ts, steps, low, high):
    """(flow-matching loss, distillation loss) of one transition."""
    net, members = critic.velocity, range(critic.velocity.entry.bias.shape[0])
    flow = np.zeros(len(members))
    for e in members:
        for z, t in zip(z_0, ts, strict=True):
            z_t = (1 - t) * z + t * y
            flow[e] += (velocity(net, e, obs, act, z_t, t, low, high) - (y - z)) ** 2
    value = np.mean([integrate(net, e, obs, act, z, steps, low, high) for e in members for z in z_0])
    inputs = np.concatenate([obs, act])
    distilled = []
    for m in range(critic.distilled.entry.bias.shape[0]):
        entry = critic.distilled.entry
        distilled.append(body(critic.distilled, m, inputs @ np.asarray(entry.weight)[m] + np.asarray(entry.bias)[m]))
    return flow.mean(), np.mean((np.array(distilled) - value) ** 2)


def quantile(critic, member, obs, act, tau):
    """Z(s, a, tau): one network over the concatenation of s, a and cos(pi i tau), i = 1, 2, ..."""
    i = np.arange(1, critic.config.quantile_embed_dim + 1)
    inputs, entry = np.concatenate([obs, act, np.cos(np.pi * i * tau)]), critic.net.entry
    return body(critic.net, member, inputs @ np.asarray(entry.weight)[member] + np.asarray(entry.bias)[member])


def quantile_loss(critic, obs, act, targets, taus):
    """Mean over targets and members of the sum over current quantiles."""
    members, total = range(critic.net.entry.bias.shape[0]), 0.0
    for y in targets:
        for e in members:
            for tau in taus:
                error = y - quantile(critic, e, obs, act, tau)
                total += (tau if error >= 0 else 1 - tau) * error**2
    return total / len(targets) / len(members) / critic.config.kappa
