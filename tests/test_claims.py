"""Claims are judged rightly on both sides of each threshold, and never from one network each."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dlops.report.claims import (
    Claims,
    Quantity,
    best,
    difference,
    fact,
    ratio,
    score,
    spread,
    values,
)
from dlops.settings import DlopsError


@dataclass
class Seed:
    seed: int


class Run:
    """As much of a Result as a claim looks at; `right` of `images` test images are right."""

    def __init__(self, seed, right=None, images=300, **metrics):
        self.experiment, self.metrics = Seed(seed), dict(metrics)
        if right is not None:
            self.labels = np.arange(images) % 7
            wrong = np.arange(images) >= right
            self.predictions = np.stack([self.labels + wrong, self.labels + 7], axis=1)
            self.metrics |= {"test_top1": right / images, "test_images": images}


class Bare(Run):
    """A sweep's member, which keeps no predictions."""

    @property
    def predictions(self):
        raise DlopsError("not kept")

    labels = predictions


def runs(metric_by_seed, metric="d"):
    return [Run(seed, **{metric: value}) for seed, value in metric_by_seed.items()]


def verdict(quantity, **threshold):
    claims = Claims()
    claims.add("Claimed.", quantity, **threshold)
    return claims.verdict("Claimed.")


FIVE = dict(enumerate([0.050, 0.062, 0.055, 0.047, 0.058]))  # 90 %: 0.0489 to 0.0599
THREE = dict(enumerate([0.050, 0.062, 0.055]))


def test_a_difference_is_student_s_over_pairs_of_seeds():
    a, b = (
        runs({s: 0.8 + s / 10 + x for s, x in FIVE.items()}),
        runs({s: 0.8 + s / 10 for s in FIVE}),
    )
    found = difference(a, b[::-1], "d")  # whatever their order
    expected = ttest_1samp(list(FIVE.values()), 0)
    assert found.estimate == pytest.approx(np.mean(list(FIVE.values())))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.9)), abs=1e-12)
    assert found.test(0)[0] == pytest.approx(expected.pvalue / 2)
    assert found.n == "5 seeds"


def test_ratios_are_averaged_as_logarithms():
    found = values([1.1, 1.3, 1.2], "times")
    assert found.estimate == pytest.approx((1.1 * 1.3 * 1.2) ** (1 / 3))
    low, high = found.interval
    assert found.test(low)[0] == pytest.approx(0.05) == pytest.approx(found.test(high)[1])
    assert values([1.1, 0.0], "times").reason


@pytest.mark.parametrize("by_seed", [FIVE, THREE])
def test_both_sides_of_a_threshold_agree_with_the_interval(by_seed):
    q = values(by_seed)
    low, high = q.interval
    for claim, sign, near, far in (("above", -1, low, high), ("below", 1, high, low)):
        assert verdict(q, **{claim: near + sign * 1e-4}) == "supported"
        assert verdict(q, **{claim: near - sign * 1e-4}) == "undecided"
        assert verdict(q, **{claim: far + sign * 1e-4}) == "undecided"
        assert verdict(q, **{claim: far - sign * 1e-4}) == "refuted"


def test_between_needs_both_ends_and_is_refuted_beyond_either():
    q = values(FIVE)
    low, high = q.interval
    assert verdict(q, between=(low - 1e-4, high + 1e-4)) == "supported"
    assert verdict(q, between=(low + 1e-4, high + 1e-4)) == "undecided"
    assert verdict(q, between=(0.070, 0.080)) == verdict(q, between=(0.02, 0.03)) == "refuted"
    assert verdict(q, between=(high + 1e-4, 1)) == "undecided"  # two tails, so twice the p
    assert verdict(q, between=(high + 4e-3, 1)) == "refuted"


def test_ratios_have_a_geometric_mean_whatever_the_number_of_seeds():
    for each in ([0.5], [0.5, 0.5], [0.25, 1.0], [0.125, 0.5, 2.0]):
        q = values(each, "times")
        assert q.estimate == pytest.approx(0.5)
        assert q.measured == "0.50 times"
    assert verdict(values([1.19, 1.20, 1.21], "times"), above=1.1) == "supported"
    assert verdict(values([1.19, 1.20, 1.21], "times"), above=1.3) == "refuted"
    assert verdict(values([0.5, 0.0], "times"), above=0.1) == "not measured"


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("images", [10, 1000])
def test_at_the_threshold_support_is_false_in_five_percent(n, images):
    """Accuracies in whole images, so that two seeds often differ by exactly the same."""
    rng = np.random.default_rng(n)
    a, b = rng.binomial(images, 0.8, (2, 400, n))
    found = [
        difference(
            [Run(s, x, images) for s, x in enumerate(a[i])],
            [Run(s, x, images) for s, x in enumerate(b[i])],
            "test_top1",
        ).test(0)
        for i in range(400)
    ]
    assert np.mean(np.array(found) <= 0.05, axis=0).max() <= 0.08  # 0.05 and 2.7 of its deviations


def test_a_large_effect_is_found_with_three_seeds():
    rng = np.random.default_rng(0)
    effects = rng.normal(0.1, 0.01, (100, 3))
    assert np.mean([verdict(values(each), above=0.05) == "supported" for each in effects]) > 0.95
    assert np.mean([verdict(values(each), below=0.05) == "refuted" for each in effects]) > 0.95


def test_one_network_each_never_decides_about_a_method():
    a, b = Run(0, 290), Run(0, 10)
    quantities = {
        "these two networks, over 300 images": difference(a, [b], "test_top1"),
        "this network, over 300 images": score(a, "test_top1"),
        "these 2 networks, over 300 images": spread({"a": a, "b": b}, "test_top1"),
        "these two networks": ratio(a, b, "test_top1"),
        "1 seed": values({0: 0.9}),
    }
    for n, q in quantities.items():
        assert q.n == n
        assert verdict(q, above=-1.0) == verdict(q, below=-1.0) == "undecided"
    low, high = quantities["these two networks, over 300 images"].interval
    assert 0.9 < low < 280 / 300 < high < 0.97
    low, high = quantities["this network, over 300 images"].interval
    assert 0.94 < low < 290 / 300 < high < 0.98
    low, high = quantities["these 2 networks, over 300 images"].interval
    assert 0.9 < low < 280 / 300 < high < 0.97


def test_one_image_or_no_predictions_leave_no_interval():
    one = difference(Run(0, 1, images=1), Run(0, 0, images=1), "test_top1")
    assert one.interval is None and one.n == "these two networks, over 1 image"
    assert spread({"a": Run(0, 1, 1), "b": Run(0, 0, 1)}, "test_top1").interval is None
    low, high = score(Run(0, 1, images=1), "test_top1").interval
    assert 0 < low < 0.4 and high == 1
    kept = score(Bare(0, test_top1=0.9, test_images=50), "test_top1")
    assert kept.interval == score(Run(0, 45, images=50), "test_top1").interval
    assert score(Run(0, d=3.0), "d").interval is None
    bare = difference(Bare(0, test_top1=0.5), Bare(0, test_top1=0.4), "test_top1")
    assert bare.interval is None and bare.n == "these two networks"
    assert difference(Run(0, d=3.0), Run(0, d=1.0), "d").interval is None  # no mean over images


def test_holm_over_the_page_changes_a_borderline_verdict():
    borderline, clear = values(THREE), values([0.0500, 0.0501, 0.0502])
    threshold = borderline.interval[0] - 1e-3  # p just below 0.05
    claims = Claims()
    claims.add("Borderline.", borderline, above=threshold)
    assert claims.verdict("Borderline.") == "supported"
    claims.add("A fact.", fact(1, "one"), above=0)
    claims.add("One seed.", values([1.0]), above=0)
    assert claims.verdict("Borderline.") == "supported"  # neither is a test
    claims.add("Undecided.", borderline, above=0.05)
    assert claims.verdict("Borderline.") == "undecided"
    other = Claims()
    other.add("Borderline.", borderline, above=threshold)
    other.add("Clear.", clear, above=0)
    assert other.verdict("Borderline.") == "supported"  # the clear one steps aside


def test_only_common_seeds_are_paired():
    a, b = runs({0: 1.0, 1: 2.0, 2: 9.0}), runs({1: 1.5, 0: 0.5, 7: 100.0})
    found = difference(a, b, "d")
    assert (found.estimate, found.n) == (0.5, "2 of 4 seeds, all equal")
    with pytest.raises(DlopsError, match="No seed has a result of each"):
        difference(runs({0: 1.0}), runs({1: 1.0}), "d")
    with pytest.raises(DlopsError, match="twice"):
        difference([*a, *a], b, "d")


def test_equal_seeds_decide_by_comparison_and_say_so():
    q = difference(runs(dict.fromkeys(range(3), 0.3)), runs(dict.fromkeys(range(3), 0.1)), "d")
    assert q.n == "3 seeds, all equal"
    assert verdict(q, above=0.19) == verdict(q, below=0.21) == "supported"
    assert verdict(q, above=0.21) == verdict(q, below=0.19) == "refuted"
    assert verdict(q, above=0.2) == verdict(q, below=0.2) == "undecided"
    flat = {"a": runs({0: 0.5, 1: 0.5}), "b": runs({0: 0.5, 1: 0.5})}
    assert verdict(spread(flat, "d"), above=0) == "undecided"
    assert verdict(spread(flat, "d"), below=0.01) == "supported"


def test_two_seeds_equal_to_the_image_are_no_proof():
    """Accuracies are rounded to whole images: one image more in each of two seeds is luck."""
    a = [Run(0, 241), Run(1, 241)]
    assert verdict(difference(a, [Run(0, 240), Run(1, 240)], "test_top1"), above=0) == "undecided"
    assert verdict(difference(a, [Run(0, 200), Run(1, 200)], "test_top1"), above=0) == "supported"


def test_a_score_stays_a_share():
    found = score([Run(0, 300), Run(1, 290), Run(2, 300)], "test_top1")
    assert found.interval[1] == 1 and found.measured == "98.9 %"
    assert verdict(found, above=0.9) == "supported"
    assert verdict(found, above=0.99) == "undecided"


def test_a_ratio_is_a_geometric_mean():
    a, b = runs({0: 2.0, 1: 4.4, 2: 1.8}), runs({0: 1.0, 1: 2.0, 2: 1.0})
    found = ratio(a, b, "d")
    assert found.estimate == pytest.approx((2 * 2.2 * 1.8) ** (1 / 3))
    assert found.estimate == pytest.approx(1 / ratio(b, a, "d").estimate)
    low, high = found.interval
    assert low < found.estimate < high and low * high == pytest.approx(found.estimate**2)
    assert verdict(found, above=low - 0.01) == "supported"
    assert verdict(found, above=low + 0.01) == "undecided"
    assert verdict(found, below=-1.0) == "refuted"
    assert verdict(ratio(runs({0: 0.0}), runs({0: 1.0}), "d"), above=1) == "not measured"


def groups(table, names="abcdefgh"):
    """Results of k groups from values [n, k]."""
    return {name: runs(dict(enumerate(column))) for name, column in zip(names, np.transpose(table))}


def test_equal_groups_seldom_spread_and_seeds_are_blocks():
    """The best of six is no winner: two sigmas of one score would find one in most runs."""
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(300, 4, 6)) + 10 * rng.normal(size=(300, 4, 1))
    found = [spread(groups(table), "d").interval[0] > 0 for table in tables]
    assert 0.01 < np.mean(found) < 0.09
    leaders = [len(best(groups(table), "d").tied) < 5 for table in tables[:100]]
    assert leaders == found[:100]


def test_below_holds_at_a_spread_of_just_the_threshold():
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(300, 4, 3)) + np.array([0, 1, 4.0])
    low, high = np.array([spread(groups(table), "d").interval for table in tables]).T
    assert np.mean(high < 4) < 0.09 and np.mean(low > 4) < 0.09


def test_a_spread_on_both_sides_of_its_threshold():
    table = np.array([[1.0, 2.1, 3.0], [1.1, 2.0, 3.1], [0.9, 2.0, 3.2]])
    found = spread(groups(table), "d")
    low, high = found.interval
    assert found.estimate == pytest.approx(2.1)
    assert verdict(found, above=low - 0.01) == verdict(found, below=high + 0.01) == "supported"
    assert verdict(found, above=low + 0.01) == verdict(found, below=high - 0.01) == "undecided"
    assert verdict(found, above=high + 0.01) == verdict(found, below=low - 0.01) == "refuted"
    with pytest.raises(DlopsError, match="two groups or more"):
        spread({"a": runs(FIVE)}, "d")


def test_ties_are_called_ties():
    rng = np.random.default_rng(0)
    table = rng.normal(0.8, 0.002, (5, 3)) + np.array([0, 0.001, 0.1])
    clear = {name: [Run(r.experiment.seed, test_top5=r.metrics["d"]) for r in group]
             for name, group in groups(table).items()}  # fmt: skip
    assert best(clear, "test_top5").leader == "c"
    assert best(clear, "test_top5").tied == ()
    assert str(best(clear, "test_top5")) == "c leads: 90.0 %"
    tied = best({name: clear[name] for name in "ab"}, "test_top5")
    assert tied.leader in "ab" and len(tied.tied) == 1
    assert tied.text.startswith("no winner: 7") or tied.text.startswith("no winner: 8")
    among = best({**clear, "d": clear["c"]}, "test_top5")
    assert str(among) == "no winner among c, d: 90.0 %"
    one = best({name: group[:1] for name, group in clear.items()}, "test_top5")
    assert one.leader == "c" and set(one.tied) == {"a", "b"}
    assert best({**clear, "e": runs(FIVE)}, "test_top5").leader == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "absent", [1.0]])
def test_what_was_not_measured_is_no_zero(bad):
    broken = Run(1, d=bad) if bad != "absent" else Run(1)
    q = difference([Run(0, d=1.0), broken], runs({0: 1.0, 1: 1.0}), "d")
    assert verdict(q, below=5) == "not measured"
    assert "d is" in q.measured and "seed 1" in q.measured
    assert verdict(values({0: 1.0, 1: math.nan}), above=0) == "not measured"
    assert verdict(values({}), above=0) == "not measured"
    assert verdict(fact(math.nan, "share of dead units"), above=0) == "not measured"


def test_networks_of_other_test_images_are_not_compared():
    with pytest.raises(DlopsError, match="different test images"):
        difference(Run(0, 5, images=10), Run(0, 5, images=20), "test_top1")
    other = Run(0, 5, images=10)
    other.labels = other.labels[::-1]
    with pytest.raises(DlopsError, match="different test images"):
        difference(Run(0, 5, images=10), other, "test_top1")


def test_a_fact_is_compared():
    q = fact(0.5, "half of the units")
    assert verdict(q, above=0.49) == verdict(q, below=0.51) == "supported"
    assert verdict(q, above=0.5) == verdict(q, below=0.5) == "refuted"
    assert verdict(q, between=(0.5, 0.6)) == verdict(q, between=(0.4, 0.5)) == "supported"
    assert verdict(q, between=(0.6, 0.7)) == "refuted"


@pytest.mark.parametrize(
    "threshold",
    [{}, {"above": 0, "below": 1}, {"between": (1, 0)}, {"above": math.nan}, {"below": math.inf},
     {"above": 0, "between": (0, 1)}],
)  # fmt: skip
def test_a_claim_has_exactly_one_threshold(threshold):
    with pytest.raises(DlopsError, match="exactly one threshold"):
        Claims().add("Claimed.", fact(1, "one"), **threshold)


def test_a_claim_stands_once_and_is_found_by_its_key():
    claims = Claims()
    claims.add("First.", fact(1, "one"), above=0, key="first")
    claims.add("Second.", fact(1, "one"), above=2)
    assert (claims.verdict("first"), claims.verdict("Second.")) == ("supported", "refuted")
    for sentence, key in (("First.", ""), ("Third.", "first")):
        with pytest.raises(DlopsError, match="twice"):
            claims.add(sentence, fact(1, "one"), above=0, key=key)
    with pytest.raises(DlopsError, match='no claim "third"'):
        claims.verdict("third")


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        (Quantity(unit="points", signed=True), 0.051, "+5.1 points"),
        (Quantity(unit="points", signed=True), -0.051, "−5.1 points"),
        (Quantity(unit="points", signed=True), -0.0001, "0.0 points"),
        (Quantity(unit="points"), 0.02, "2.0 points"),
        (Quantity(unit="%"), 1.0, "100.0 %"),
        (Quantity(unit="times"), 1.5, "1.50 times"),
        (Quantity(unit="images/s"), 12345.6, "12,346 images/s"),
        (Quantity(), -0.01234, "−0.0123"),
        (Quantity(), 100.0, "100"),
    ],
)
def test_numbers_are_set_as_in_print(quantity, value, text):
    assert quantity.number(value) == text


def test_the_table_and_the_sentinel_tell_the_same(capsys):
    claims = Claims()
    claims.show()
    assert capsys.readouterr().out == ""
    five = difference(
        [Run(s, 250 + s) for s in range(5)], [Run(s, 220 + s % 3) for s in range(5)], "test_top1"
    )
    claims.add("A beats <b>.", five, above=0.05, figure="mining")
    claims.add("B is missing.", score(Run(0), "test_top1"), above=0.1)
    assert str(five) == "+10.4 points (90 % interval +9.9 to +10.9, 5 seeds)"
    first, second = json.loads(json.dumps(claims.payload()))
    assert first == {
        "sentence": "A beats <b>.",
        "verdict": "supported",
        "quantity": "+10.4 points",
        "interval": "+9.9 to +10.9",
        "n": "5 seeds",
        "threshold": "above +5.0 points",
        "p": "p < 0.001",
        "anchor": "claim-1",
        "figure": "fig-mining",
    }
    assert second["verdict"] == "not measured"
    assert second["quantity"] == "test_top1 is missing for seed 0"
    page = claims._html()
    assert '<tr id="claim-1"><td>A beats &lt;b&gt;. <a href="#fig-mining">Figure</a></td>' in page
    assert '<td class="verdict verdict-supported">supported<br><small>p &lt; 0.001' in page
    assert '<td class="verdict verdict-not-measured">not measured</td>' in page
    claims.show()


def test_ratios_of_seeds_are_judged_as_logarithms():
    twice = values([1.6, 2.5, 2.0], "times")
    assert twice.estimate == pytest.approx(2.0)
    assert twice.interval[0] * twice.interval[1] == pytest.approx(4.0)
    assert verdict(values([1.9, 2.0, 2.1], "times"), above=1.5) == "supported"
    assert verdict(values([1.9, 2.0, 2.1], "times"), above=2.5) == "refuted"
    assert verdict(values([0.0, 2.0], "times"), above=1) == "not measured"
