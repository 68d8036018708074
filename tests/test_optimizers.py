"""The four update rules as plain code, held to torch.optim step by step."""

import inspect

import pytest
import torch

from dlops import optimizers
from dlops.build import Network, make_optimizer
from dlops.experiment import Experiment
from dlops.series import sweeps

STEPS = 20
CASES = [
    ("adam", {}),
    ("adam", {"lr": 0.01, "beta1": 0.0, "beta2": 0.9}),
    ("adam", {"beta1": 0.99, "beta2": 0.9999, "eps": 1e-2}),
    ("adam", {"weight_decay": 0.1}),
    ("adam", {"weight_decay": 0.1, "decoupled": True}),
    ("adam", {"amsgrad": True, "beta2": 0.5}),
    ("adam", {"amsgrad": True, "weight_decay": 0.1, "decoupled": True}),
    ("adagrad", {}),
    ("adagrad", {"lr": 0.1, "lr_decay": 1.0, "initial_accumulator": 0.01}),
    ("adagrad", {"eps": 1e-2, "weight_decay": 0.1}),
    ("adadelta", {}),
    ("adadelta", {"lr": 0.1, "rho": 0.5, "eps": 1e-4}),
    ("adadelta", {"rho": 0.99, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"alpha": 0.9, "momentum": 0.9, "eps": 1e-4}),
    ("rmsprop", {"centered": True}),
    ("rmsprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
]
TORCH = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
}


def theirs(name, parameters, settings):
    """torch's optimizer with our names for its settings, and torch's own defaults."""
    settings = dict(settings)
    if name == "adam":
        settings["betas"] = settings.pop("beta1", 0.9), settings.pop("beta2", 0.999)
        if settings.pop("decoupled", False):
            return torch.optim.AdamW(parameters, **settings)
    if "initial_accumulator" in settings:
        settings["initial_accumulator_value"] = settings.pop("initial_accumulator")
    return TORCH[name](parameters, **settings)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_rule_equals_torch(name, settings):
    """On a function with steep and flat directions, whose gradients change size and sign."""
    torch.manual_seed(0)
    scale = torch.logspace(-4, 2, 12, dtype=torch.float64)
    start = torch.randn(12, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = theirs(name, [parameter], settings)
    w, state = start.clone(), {}
    for step in range(STEPS):
        noise = torch.randn(12, dtype=torch.float64)
        optimizer.zero_grad()
        parameter.grad = scale * (parameter.detach() + noise)
        optimizer.step()
        w = getattr(optimizers, name)(w, scale * (w + noise), state, **settings)
        assert (w - start).abs().min() > 0
        torch.testing.assert_close(w, parameter.detach(), rtol=1e-10, atol=1e-12, msg=f"{step}")


@pytest.mark.parametrize("name", sweeps.OPTIMIZERS)
def test_attributes_reach_torch(name):
    """Every attribute that the study varies changes the optimizer that training uses."""
    base = Experiment.from_preset(f"lab3.{name}", "quick", weights="none")
    network = Network(base, (3, 16, 16))

    def options(experiment):
        optimizer = make_optimizer(experiment, network)
        group = optimizer.param_groups[0]
        own = {key: value for key, value in group.items() if key not in ("params", "scale")}
        return type(optimizer), own

    seen = [options(base)]
    for attribute in sweeps.ATTRIBUTES[name]:
        for value in attribute.values:
            changed = base.with_(**{attribute.setting: value}, **dict(attribute.also))
            seen.append(options(changed))
            assert seen[-1] not in seen[:-1], attribute


@pytest.mark.parametrize("name", sweeps.OPTIMIZERS)
def test_rules_are_short_enough_to_show(name):
    source = inspect.getsource(getattr(optimizers, name)).splitlines()
    assert max(map(len, source)) <= 78
    assert len(source) <= 16
