"""Max-min fairness: optimal, exact, and equal to a second solver written differently."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.p2p.bandwidth.fairness import Demand, max_min

RESOURCES = "abcdef"
amounts = st.fractions(min_value=Fraction(1, 8), max_value=8, max_denominator=8)
demands = st.builds(
    Demand,
    st.dictionaries(st.sampled_from(RESOURCES), amounts, min_size=1, max_size=4),
    st.none() | amounts,
)
problems = st.tuples(
    st.fixed_dictionaries(dict.fromkeys(RESOURCES, amounts)),
    st.lists(demands, min_size=1, max_size=6),
)


def used(demands, rates, resource):
    return sum(
        demand.costs.get(resource, 0) * rate for demand, rate in zip(demands, rates, strict=True)
    )


def by_fixing_who_cannot_grow(capacities, demands):
    """The definition, as a search: raise all that are not fixed to the highest common level at
    which everything still fits, found by asking every constraint; then fix who is at a full
    resource or at its bound. Nothing is kept from one round to the next.
    """
    rates = [None] * len(demands)
    while None in rates:
        free = [index for index, rate in enumerate(rates) if rate is None]
        levels = []
        for resource, capacity in capacities.items():
            taken = sum(
                demands[index].costs.get(resource, 0) * rate
                for index, rate in enumerate(rates)
                if rate is not None
            )
            slope = sum(demands[index].costs.get(resource, 0) for index in free)
            if slope:
                levels.append((capacity - taken) / slope)
        levels += [demands[index].bound for index in free if demands[index].bound is not None]
        level = min(levels)
        trial = [level if rate is None else rate for rate in rates]
        for index in free:
            stuck = demands[index].bound == level or any(
                used(demands, trial, resource) == capacities[resource]
                for resource in demands[index].costs
            )
            if stuck:
                rates[index] = level
    return rates


@given(problems)
def test_it_equals_a_solver_that_starts_anew_each_round(problem):
    capacities, asked = problem
    shares = max_min(capacities, asked)
    assert [share.rate for share in shares] == by_fixing_who_cannot_grow(capacities, asked)


@given(problems)
def test_no_resource_carries_more_than_it_can(problem):
    capacities, asked = problem
    rates = [share.rate for share in max_min(capacities, asked)]
    for resource, capacity in capacities.items():
        assert used(asked, rates, resource) <= capacity


@given(problems)
def test_a_flow_can_only_grow_at_the_cost_of_one_that_has_no_more(problem):
    """Every flow is at its bound, or on a full resource where nobody has more than it."""
    capacities, asked = problem
    shares = max_min(capacities, asked)
    rates = [share.rate for share in shares]
    for demand, share in zip(asked, shares, strict=True):
        if share.limit is None:
            assert share.rate == demand.bound
            continue
        assert demand.costs[share.limit]
        assert used(asked, rates, share.limit) == capacities[share.limit]
        assert all(
            rate <= share.rate
            for other, rate in zip(asked, rates, strict=True)
            if share.limit in other.costs
        )


@given(problems, amounts)
def test_twice_the_capacity_is_twice_the_rate(problem, factor):
    capacities, asked = problem
    scaled = max_min(
        {resource: capacity * factor for resource, capacity in capacities.items()},
        [
            demand._replace(bound=None if demand.bound is None else demand.bound * factor)
            for demand in asked
        ],
    )
    assert [share.rate for share in scaled] == [
        share.rate * factor for share in max_min(capacities, asked)
    ]


@given(problems, st.randoms(use_true_random=False))
def test_the_order_of_flows_does_not_matter(problem, random):
    capacities, asked = problem
    order = list(range(len(asked)))
    random.shuffle(order)
    shuffled = max_min(capacities, [asked[index] for index in order])
    plain = max_min(capacities, asked)
    assert [share.rate for share in shuffled] == [plain[index].rate for index in order]


@given(problems, st.sampled_from(RESOURCES), amounts)
def test_more_of_a_resource_never_lowers_the_slowest_flow(problem, resource, more):
    capacities, asked = problem
    before = min(share.rate for share in max_min(capacities, asked))
    richer = {**capacities, resource: capacities[resource] + more}
    assert min(share.rate for share in max_min(richer, asked)) >= before


@given(problems, demands)
def test_another_flow_never_raises_the_slowest(problem, another):
    capacities, asked = problem
    before = min(share.rate for share in max_min(capacities, asked))
    assert min(share.rate for share in max_min(capacities, [*asked, another])) <= before


@settings(max_examples=50)
@given(problems)
def test_floats_give_the_same_within_rounding(problem):
    capacities, asked = problem
    exact = max_min(capacities, asked)
    floats = max_min(
        {resource: float(capacity) for resource, capacity in capacities.items()},
        [
            Demand(
                {resource: float(cost) for resource, cost in demand.costs.items()},
                None if demand.bound is None else float(demand.bound),
            )
            for demand in asked
        ],
    )
    for share, reference in zip(floats, exact, strict=True):
        assert abs(share.rate - float(reference.rate)) <= 1e-9 * max(1.0, float(reference.rate))


def test_a_flow_without_costs_or_bound_is_not_limited():
    (share,) = max_min({}, [Demand({})])
    assert share.rate == float("inf")
    assert share.limit is None


def test_textbook_example_of_three_flows_on_two_links():
    shares = max_min(
        {"one": 10, "two": 4},
        [Demand({"one": 1}), Demand({"one": 1, "two": 1}), Demand({"two": 1})],
    )
    assert [share.rate for share in shares] == [8, 2, 2]
    assert [share.limit for share in shares] == ["one", "two", "two"]
