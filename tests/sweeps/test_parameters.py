"""Distributions: W&B's defaults, bounds, quantisation and quantiles."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peftlib.errors import UserError
from peftlib.sweeps.parameters import REQUIRED, Parameter, parse_parameter
from tests.sweeps.wandb_search import wandb_search

optuna.logging.set_verbosity(optuna.logging.WARNING)

_BOUNDED = [name for name, required in REQUIRED.items() if "min" in required]
_SHAPED = [name for name, required in REQUIRED.items() if not required]


@st.composite
def bounded(draw: st.DrawFn) -> Parameter:
    """Draw a bounded distribution, in the range of learning rates, ranks and shares."""
    distribution = draw(st.sampled_from(_BOUNDED))
    numbers = st.floats(1e-6, 100) if distribution.endswith("_values") else st.floats(-5, 5)
    if distribution == "int_uniform":
        numbers = st.integers(-50, 50)
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    content = {"distribution": distribution, "min": low, "max": high}
    if distribution.startswith("q_"):
        content["q"] = draw(st.one_of(st.integers(1, 8), st.floats(0.01, 2)))
    return parse_parameter("x", content)


@st.composite
def shaped(draw: st.DrawFn) -> Parameter:
    """Draw a distribution with shape parameters, some of them left at their defaults."""
    content: dict[str, object] = {"distribution": draw(st.sampled_from(_SHAPED))}
    names = ("a", "b") if content["distribution"].endswith("beta") else ("mu", "sigma")
    for name in names:
        if draw(st.booleans()):
            content[name] = draw(st.floats(0.2, 3))
    if content["distribution"].startswith("q_") and draw(st.booleans()):
        content["q"] = draw(st.one_of(st.integers(1, 5), st.floats(0.05, 1)))
    return parse_parameter("x", content)


def ends(parameter: Parameter) -> tuple[float, float]:
    """Return the bounds of a distribution, according to W&B's documentation."""
    low, high = parameter.settings["min"], parameter.settings["max"]
    kind = parameter.distribution.removeprefix("q_")
    if kind == "log_uniform":
        return math.exp(low), math.exp(high)
    if kind == "inv_log_uniform":
        return math.exp(-high), math.exp(-low)
    return low, high


@given(bounded(), st.floats(0, 1))
def test_a_draw_is_within_the_bounds_and_on_the_grid_of_q(parameter, share):
    value, (low, high) = parameter.quantile(share), ends(parameter)
    q = parameter.settings.get("q")
    # A multiple of q may lie outside by up to q / 2: W&B rounds after drawing.
    slack = (q or 0) / 2 + 1e-9 * max(1, abs(low), abs(high))
    assert low - slack <= value <= high + slack
    if q is not None:
        assert abs(value / q - round(value / q)) < 1e-6
        assert isinstance(value, int) == isinstance(q, int)
    if parameter.distribution == "int_uniform":
        assert isinstance(value, int)


@given(st.one_of(bounded(), shaped()), st.floats(0.001, 0.999))
def test_quantiles_are_those_of_wandb(parameter, share):
    content = {"distribution": parameter.distribution, **parameter.settings}
    theirs = wandb_search("params").HyperParameter("x", content)
    if parameter.distribution == "int_uniform":
        # Theirs computes in floats, which may shift the boundary between two integers.
        assert abs(parameter.quantile(share) - theirs.ppf(share)) <= 1
        return
    q, value = parameter.settings.get("q", 0), float(theirs.ppf(share))
    assume(not math.isnan(value))  # W&B's, if the bounds are adjacent floats
    assert math.isclose(parameter.quantile(share), value, rel_tol=1e-6, abs_tol=1e-9 + q * 1.000001)


@given(st.one_of(bounded(), shaped()), st.integers(0, 2**31))
def test_optuna_draws_a_value_that_the_distribution_can_give(parameter, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = parameter.suggest(study.ask())
    assert math.isfinite(value)
    if "min" in parameter.settings:
        low, high = ends(parameter)
        slack = parameter.settings.get("q", 0) / 2 + 1e-9 * max(1, abs(low), abs(high))
        assert low - slack <= value <= high + slack


@given(st.lists(st.integers(0, 10), min_size=1, max_size=5).filter(any), st.floats(0, 1))
def test_a_value_without_probability_is_never_drawn(weights, share):
    shares = [weight / sum(weights) for weight in weights]
    parameter = parse_parameter("x", {"values": list(range(len(shares))), "probabilities": shares})
    assert parameter.distribution == "categorical_w_probabilities"
    assert shares[parameter.quantile(share)] > 0


@given(st.lists(st.one_of(st.booleans(), st.integers(0, 1), st.text(max_size=3), st.none(),
                          st.dictionaries(st.text(max_size=2), st.integers())), min_size=1, max_size=6))  # fmt: skip
def test_a_drawn_category_is_the_very_value_of_the_file(values):
    parameter = parse_parameter("x", {"values": values})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    value = parameter.suggest(study.ask())
    assert any(type(value) is type(other) and value == other for other in values)


@pytest.mark.parametrize("values", [["a", "a", "b"], [1, 1.0, 2], [{"b": 1}, {"b": 1}, {"b": 2}]])
def test_a_value_that_is_listed_twice_is_drawn_as_often_as_by_wandb(values):
    content = {"values": values}
    ours = parse_parameter("x", content)
    theirs = wandb_search("params").HyperParameter("x", content)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [ours.suggest(study.ask()) for _ in range(300)]
    share = sum(theirs.ppf((place + 0.5) / 300) == values[0] for place in range(300)) / 300
    assert share == pytest.approx(2 / 3, abs=0.01)
    assert sum(value == values[0] for value in drawn) / 300 == pytest.approx(share, abs=0.08)  # 3 standard deviations


@pytest.mark.parametrize(
    ("content", "distribution"),
    [
        ({"value": 3}, "constant"), ({"values": [1]}, "categorical"), ({"min": 1, "max": 2}, "int_uniform"),
        ({"min": 1.0, "max": 2.0}, "uniform"),
    ],
)  # fmt: skip
def test_what_is_not_said_is_as_wandb_documents_it(content, distribution):
    assert parse_parameter("x", content).distribution == distribution


def test_a_grid_of_q_uniform_ends_before_max_as_in_wandb():
    parameter = parse_parameter("x", {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25})
    assert parameter.grid() == [0, 0.25, 0.5, 0.75]


def test_equal_values_are_one_point_of_a_grid():
    assert parse_parameter("x", {"values": [1, 1.0, True, "1", 1]}).grid() == [1, True, "1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "parameters.x: needs value, values, min and max, or a distribution"),
        ({"distribution": "log_uniform_vales", "min": 1, "max": 2}, "parameters.x.distribution: log_uniform_vales is"),
        ({"min": 1, "max": 2.5}, "parameters.x: min and max must both be whole numbers"),
        ({"min": 2, "max": 1}, "parameters.x.min: 2 is not less than max 1"),
        ({"distribution": "uniform", "min": "1e-4", "max": 1}, "parameters.x.min: '1e-4' is not a number (YAML reads"),
        ({"distribution": "uniform", "min": 0}, "parameters.x.max: missing; uniform needs min and max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "parameters.x.min: 0 must be greater than 0"),
        ({"distribution": "normal", "sigm": 1}, "parameters.x.sigm: normal has no such setting; did you mean sigma?"),
        ({"distribution": "q_normal", "q": 0}, "parameters.x.q: 0 must be greater than 0"),
        ({"values": []}, "parameters.x.values: must be a list with at least one entry"),
        ({"values": 3}, "parameters.x.values: must be a list"),
        ({"values": [1, 2], "probabilities": [1.0]}, "parameters.x.probabilities: 1 for 2 values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "parameters.x.probabilities: add up to 1.1, but must"),
        ({"distribution": "int_uniform", "min": 1.5, "max": 3}, "parameters.x.min: 1.5 is not a whole number"),
        ({"distribution": ["uniform"], "min": 0.0, "max": 1.0}, "parameters.x.distribution: ['uniform'] is unknown"),
        ({"distribution": {"a": 1}, "min": 0.0, "max": 1.0}, "parameters.x.distribution: {'a': 1} is unknown"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000},
         "parameters.x.max: 1000 is an exponent of e in log_uniform, and too large; to give the values "
         "themselves, write distribution: log_uniform_values"),
        ({"distribution": "q_log_uniform", "min": 1, "max": 1000}, "parameters.x.max: 1000 is an exponent of e in q_l"),
        ({"distribution": "inv_log_uniform", "min": -1000, "max": 1}, "parameters.x.min: -1000 is an exponent of e"),
        ({"distribution": "log_normal", "mu": 1000}, "parameters.x.mu: these mu and sigma give values that"),
        ({"distribution": "q_log_normal", "sigma": 1000}, "parameters.x.mu: these mu and sigma give values that"),
        ({"distribution": "uniform", "min": -1e308, "max": 1e308}, "parameters.x.max: values between min and max are"),
        ({"distribution": "uniform", "min": 0, "max": 10**400}, f"parameters.x.max: {10**400} is not a number"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_wrong_parameter_is_named(content, message):
    with pytest.raises(UserError) as error:
        parse_parameter("x", content)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_without_spread_there_is_one_value(share: float) -> None:
    settings = {"mu": 2.0, "sigma": 0}
    assert parse_parameter("x", {"distribution": "normal", **settings}).quantile(share) == 2.0
    assert parse_parameter("x", {"distribution": "log_normal", **settings}).quantile(share) == math.exp(2.0)
    assert parse_parameter("x", {"distribution": "q_normal", "q": 3, **settings}).quantile(share) == 3


@pytest.mark.parametrize(
    "setting", [{"min": 1, "max": 2**31}, {"min": 0, "max": 1, "q": 1e-9, "distribution": "q_uniform"}]
)
def test_a_range_too_long_for_a_grid_is_not_listed(setting):
    with pytest.raises(
        UserError, match=r"^parameters\.x: [\d,]{13} values are too many for method grid; use random or"
    ):
        parse_parameter("x", setting).grid()
