"""The four update rules as plain tensor code, for reading; training uses torch.optim.

Each takes the weights w, their gradient g (same shape) and a state that it keeps from step to step
(an empty dict at first), and returns the new weights. Tests hold them equal to torch.optim.
"""

import torch


def adam(w, g, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
         weight_decay=0.0, amsgrad=False, decoupled=False):  # fmt: skip
    """Kingma, Ba 2015; amsgrad: Reddi et al. 2018; decoupled: AdamW, 2019."""
    t = state["t"] = state.get("t", 0) + 1
    if decoupled:
        w = w * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * w
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    if amsgrad:
        v = state["max"] = torch.maximum(v, state.get("max", v))
    m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    return w - lr * m / (v.sqrt() + eps)


def adagrad(w, g, state, lr=1e-2, lr_decay=0.0, initial_accumulator=0.0,
            eps=1e-10, weight_decay=0.0):  # fmt: skip
    """Duchi, Hazan, Singer 2011."""
    t = state["t"] = state.get("t", 0) + 1
    g = g + weight_decay * w
    s = state["s"] = state.get("s", initial_accumulator) + g**2
    return w - lr / (1 + (t - 1) * lr_decay) * g / (s.sqrt() + eps)


def adadelta(w, g, state, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler 2012."""
    g = g + weight_decay * w
    v = state["v"] = rho * state.get("v", 0) + (1 - rho) * g**2
    u = state.get("u", torch.zeros_like(g))
    d = (u + eps).sqrt() / (v + eps).sqrt() * g
    state["u"] = rho * u + (1 - rho) * d**2
    return w - lr * d


def rmsprop(w, g, state, lr=1e-2, alpha=0.99, momentum=0.0, centered=False,
            eps=1e-8, weight_decay=0.0):  # fmt: skip
    """Tieleman, Hinton 2012; centered: Graves 2013."""
    g = g + weight_decay * w
    v = state["v"] = alpha * state.get("v", 0) + (1 - alpha) * g**2
    if centered:
        a = state["a"] = alpha * state.get("a", 0) + (1 - alpha) * g
        v = v - a**2
    d = g / (v.sqrt() + eps)
    b = state["b"] = momentum * state.get("b", 0) + d
    return w - lr * b
