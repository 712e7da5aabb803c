"""The ways that the bandwidth model charges are those that the fabric of the machine takes."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_routing import Builder, Kind, machines, outcome, view_of

from vfiokit.machine.txn import AddressType
from vfiokit.p2p.bandwidth import Changes, Flow, Memory, Parameters, lifts, predict
from vfiokit.p2p.bandwidth import Kind as FlowKind
from vfiokit.p2p.bandwidth.link import LinkMap
from vfiokit.p2p.bandwidth.route import AcsView, Direction, Router


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines)
def test_a_request_goes_through_the_root_complex_when_the_fabric_sends_it_there(drawn):
    built = Builder(drawn)
    seen = view_of(built.machine)
    links = LinkMap(seen, Parameters())
    for ats, at in ((False, AddressType.UNTRANSLATED), (True, AddressType.TRANSLATED)):
        router = Router(links, AcsView(ats=ats))
        for one in built.leaves:
            for other in built.leaves:
                if one is other:
                    continue
                went = outcome(built.machine, one, other, at, Kind.WRITE)
                way = router.request(seen[one.bdf], seen[other.bdf])
                if went == "refused":
                    continue  # registers that routing does not ask may refuse: bus master, windows
                assert not way.blocked, f"{one.bdf} -> {other.bdf} {at.name}: {way.blocked}"
                through = way.root_complex is not None
                assert through == (went == "host"), f"{one.bdf} -> {other.bdf} {at.name}"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines)
def test_what_acs_blocks_does_not_arrive_in_the_fabric(drawn):
    built = Builder(drawn)
    seen = view_of(built.machine)
    router = Router(LinkMap(seen, Parameters()), AcsView(ats=False))
    for one in built.leaves:
        for other in built.leaves:
            if one is not other and router.request(seen[one.bdf], seen[other.bdf]).blocked:
                went = outcome(built.machine, one, other, AddressType.UNTRANSLATED, Kind.WRITE)
                assert went == "refused"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines, st.data())
def test_a_redirected_flow_takes_a_link_above_the_switch_in_both_directions(drawn, data):
    built = Builder(drawn)
    seen = view_of(built.machine)
    router = Router(LinkMap(seen, Parameters()), AcsView(ats=False))
    one, other = (data.draw(st.sampled_from(built.leaves)) for _ in range(2))
    if one is other:
        return
    way = router.request(seen[one.bdf], seen[other.bdf])
    shared = {hop.node.bdf for hop in router.links.ascent(seen[one.bdf]) if hop.link} & {
        hop.node.bdf for hop in router.links.ascent(seen[other.bdf]) if hop.link
    }
    for port in shared:
        taken = {
            direction for place, direction in way.steps if getattr(place, "port", None) == port
        }
        assert taken == ({Direction.UP, Direction.DOWN} if way.root_complex else set())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines, st.data())
def test_redirect_off_never_makes_one_flow_slower(drawn, data):
    built = Builder(drawn)
    seen = view_of(built.machine)
    one, other = (data.draw(st.sampled_from(built.leaves)) for _ in range(2))
    if one is other:
        return
    flows = [Flow(one.bdf, other.bdf)]
    captured = predict(seen, flows, changes=Changes(ats=False)).rates[0]
    direct = predict(seen, flows, changes=Changes(redirect=False, ats=False)).rates[0]
    assert direct.gbps >= captured.gbps


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines, st.data())
def test_no_link_carries_more_than_it_can_and_every_bottleneck_is_full(drawn, data):
    built = Builder(drawn)
    seen = view_of(built.machine)
    ends = st.sampled_from(built.leaves)
    drawn_flows = data.draw(
        st.lists(
            st.tuples(ends, ends, st.sampled_from(FlowKind), st.none() | st.floats(0.5, 200)),
            min_size=1,
            max_size=8,
        )
    )
    flows = [
        Flow(one.bdf, Memory() if one is other else other.bdf, kind, demand)
        for one, other, kind, demand in drawn_flows
    ]
    given_values = Parameters({"socket_gbps": 100, "rc_p2p_gbps": 80, "working_set": 1e9})
    prediction = predict(seen, flows, given_values)
    loads = {load.resource: load for load in prediction.loads}
    for load in prediction.loads:
        if any(prediction.rates[index].gbps == float("inf") for index in load.flows):
            continue
        assert load.used <= load.capacity * (1 + 1e-9)
    for index, rate in enumerate(prediction.rates):
        if rate.bottleneck is not None:
            assert loads[rate.bottleneck].used >= loads[rate.bottleneck].capacity * (1 - 1e-9)
            assert index in loads[rate.bottleneck].flows
        for limit in rate.limits:
            assert rate.gbps <= limit.gbps * (1 + 1e-9)
    for lift in lifts(seen, flows, prediction, given_values):
        assert lift.prediction.total >= prediction.total
