import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from multipert.data import _transport
from multipert.data._transport import match

SIZES = [(40, 40), (40, 31), (31, 40), (40, 7), (7, 40), (40, 20), (1, 9), (9, 1), (1, 1)]


def clouds(n, m, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.linspace(3, 0.5, d), rng.normal(size=(m, d)) * np.linspace(3, 0.5, d) + 0.4


def plan_of(control, perturbed, monkeypatch, **options):
    """The plan behind the partners, shape `(n, m)`, in units of mass."""
    seen = []
    best = _transport._best
    monkeypatch.setattr(_transport, "_best", lambda plan: seen.append(plan) or best(plan))
    found = match(control, perturbed, **options)
    return found, seen[0].toarray()


def solved_sizes(monkeypatch):
    """Sizes of the problems that a distance matrix is made for."""
    sizes = []
    distances = _transport.cdist
    monkeypatch.setattr(_transport, "cdist", lambda x, y: sizes.append((len(x), len(y))) or distances(x, y))
    return sizes


@given(n=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_exact_is_the_best_of_all_assignments(n, seed):
    control, perturbed = clouds(n, n, 2, seed)
    found = match(control, perturbed)
    distance = cdist(control, perturbed)
    best = min(distance[np.arange(n), list(order)].mean() for order in itertools.permutations(range(n)))
    assert found.method == "exact"
    assert found.cost == pytest.approx(best, rel=1e-12)
    assert distance[np.arange(n), found.partner].mean() == pytest.approx(best, rel=1e-12)
    assert sorted(found.partner) == list(range(n))


@pytest.mark.parametrize(("n", "m"), [(6, 4), (4, 6), (6, 3)])
def test_unequal_sides_equal_copies_of_the_points(n, m):
    control, perturbed = clouds(n, m)
    copies = np.lcm(n, m)
    expected = match(np.repeat(control, copies // n, axis=0), np.repeat(perturbed, copies // m, axis=0)).cost
    assert match(control, perturbed).cost == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("exact_up_to", [2000, 4])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_the_plan_moves_all_mass_of_both_sides(n, m, exact_up_to, monkeypatch):
    control, perturbed = clouds(n, m)
    found, plan = plan_of(control, perturbed, monkeypatch, exact_up_to=exact_up_to)
    g = np.gcd(n, m)
    np.testing.assert_array_equal(plan.sum(axis=1), np.full(n, m // g))
    np.testing.assert_array_equal(plan.sum(axis=0), np.full(m, n // g))
    assert (plan >= 0).all()
    assert found.cost == pytest.approx((plan * cdist(control, perturbed)).sum() / plan.sum(), rel=1e-12)
    # argmax takes the first among equals
    np.testing.assert_array_equal(found.partner, plan.argmax(axis=1))
    assert found.method == ("exact" if n * m <= exact_up_to**2 else "minibatch-exact")


@pytest.mark.parametrize(("n", "m"), [(1500, 1500), (1500, 1200), (300, 1500)])
def test_blocks_cost_at_least_the_exact_plan_and_little_more(n, m):
    control, perturbed = clouds(n, m, 20)
    exact = match(control, perturbed, exact_up_to=1500)
    blocks = match(control, perturbed, exact_up_to=200)
    assert (exact.method, blocks.method) == ("exact", "minibatch-exact")
    assert exact.cost * (1 - 1e-12) <= blocks.cost <= 1.15 * exact.cost


@pytest.mark.parametrize(("n", "m"), [(600, 600), (600, 431), (97, 600)])
def test_no_pass_raises_the_cost(n, m, monkeypatch):
    control, perturbed = clouds(n, m)
    costs = []
    for passes in range(6):
        monkeypatch.setattr(_transport, "_PASSES", passes)
        costs.append(match(control, perturbed, exact_up_to=60).cost)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("options", [{"exact_up_to": 30}, {"max_bytes": 64 * 900}, {"max_bytes": 64}])
@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 211), (50, 400)])
def test_distances_stay_within_the_limit(n, m, options, monkeypatch):
    sizes = solved_sizes(monkeypatch)
    found, plan = plan_of(*clouds(n, m), monkeypatch, **options)
    limit = options.get("exact_up_to", 2000) ** 2
    limit = min(limit, options.get("max_bytes", 2**30) // _transport._BYTES_PER_ENTRY)
    assert found.method == "minibatch-exact"
    assert all(rows * columns <= limit for rows, columns in sizes)
    np.testing.assert_array_equal(plan.sum(axis=1), np.full(n, m // np.gcd(n, m)))


@pytest.mark.parametrize("exact_up_to", [2000, 20])
def test_identical_sets_give_the_identity(exact_up_to):
    points, _ = clouds(200, 1)
    found = match(points, points.copy(), exact_up_to=exact_up_to)
    np.testing.assert_array_equal(found.partner, np.arange(200))
    assert found.cost == 0
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(order[match(points, points[order], exact_up_to=exact_up_to).partner], np.arange(200))


@pytest.mark.parametrize("exact_up_to", [2000, 5])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 20)])
def test_points_that_are_all_equal_are_paired(n, m, exact_up_to):
    found = match(np.ones((n, 3)), np.ones((m, 3)), exact_up_to=exact_up_to)
    assert found.cost == 0
    assert set(found.partner) <= set(range(m))
    assert np.bincount(found.partner, minlength=m).max() <= np.ceil(n / m) + 1


def test_a_shift_keeps_the_partners_and_is_the_cost():
    # distances along a line: the sorted order is optimal
    control = np.array([[0.0], [1.0], [5.0], [9.0]])
    found = match(control, control[[2, 0, 3, 1]] + 100)
    np.testing.assert_allclose(found.cost, 100)
    assert match(control, control[[2, 0, 3, 1]] + [[0.1]]).partner.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("scale", [1e-15, 1e12])
@pytest.mark.parametrize("m", [60, 45])
def test_the_unit_of_distance_changes_nothing(m, scale):
    control, perturbed = clouds(60, m)
    found, scaled = match(control, perturbed), match(control * scale, perturbed * scale)
    np.testing.assert_array_equal(scaled.partner, found.partner)
    assert scaled.cost == pytest.approx(scale * found.cost)


def test_distance_is_not_squared():
    # squared, one long and one empty step would cost more than two steps of one
    control, perturbed = np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [2.0, 0.2]])
    assert match(control, perturbed).partner.tolist() == [1, 0]
    assert match(control, perturbed).cost == pytest.approx(np.hypot(2, 0.2) / 2)


def test_best_takes_the_largest_part_and_sample_draws_by_it():
    # each control point has four units of mass, each perturbed point takes three
    control = np.array([[0.0], [5.0], [10.0]])
    perturbed = np.array([[0.0], [0.1], [9.9], [10.0]])
    assert match(control, perturbed).partner.tolist() == [0, 1, 3]
    draws = np.array([match(control, perturbed, partner="sample", seed=seed).partner for seed in range(300)])
    shares = [np.bincount(column, minlength=4) / 300 for column in draws.T]
    np.testing.assert_allclose(shares[0], [0.75, 0.25, 0, 0], atol=0.1)
    np.testing.assert_allclose(shares[1], [0, 0.5, 0.5, 0], atol=0.1)
    np.testing.assert_allclose(shares[2], [0, 0, 0.25, 0.75], atol=0.1)


@pytest.mark.parametrize("partner", ["best", "sample"])
def test_the_seed_decides(partner):
    sets = clouds(200, 130)
    first, again, other = (match(*sets, exact_up_to=40, partner=partner, seed=seed).partner for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_moving_and_turning_both_sets_changes_nothing():
    control, perturbed = clouds(60, 45)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    np.testing.assert_array_equal(
        match(control, perturbed).partner, match(control @ turn + 3, perturbed @ turn + 3).partner
    )


@pytest.mark.parametrize(
    ("control", "perturbed", "options", "message"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), {}, r"control has shape \(0, 2\)"),
        (np.zeros((3, 2)), np.zeros(3), {}, r"perturbed has shape \(3,\)"),
        (np.zeros((3, 2)), np.zeros((3, 4)), {}, "control has 2 dimension"),
        (np.zeros((3, 2)), np.array([[0, 0], [np.nan, 0]]), {}, r"perturbed has NaN or infinite values in 1 .* row 1"),
        (np.full((3, 2), np.inf), np.zeros((3, 2)), {}, "control has NaN or infinite values in 3"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"exact_up_to": 0}, "exact_up_to=0"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"max_bytes": 8}, "max_bytes=8"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"partner": "mean"}, "partner='mean'"),
    ],
)
def test_bad_arguments_are_named(control, perturbed, options, message):
    with pytest.raises(ValueError, match=message):
        match(control, perturbed, **options)
