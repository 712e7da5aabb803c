"""``watch`` and ``doctor`` on a real kernel."""

from __future__ import annotations

import pytest
import watch_scenarios as scenarios

from vfiokit.lab import Lab, Scenario

pytestmark = pytest.mark.slow


def test_a_real_kernel_is_heard_and_examined(lab: Lab) -> None:
    watched, examined = lab.run_batch(
        [
            Scenario(scenarios.bind_and_unbind_while_watching, ("nvme0",), timeout_s=120),
            Scenario(scenarios.doctor, ("edu0",), timeout_s=120),
        ]
    )
    _check_watch(watched.require())
    _check_doctor(examined.require())


def _check_watch(seen: dict[str, object]) -> None:
    assert "hearing uevents" in str(seen["begun"])
    assert seen["status"] == 130
    events = seen["events"]
    assert isinstance(events, list)
    assert {event["schema"] for event in events} == {"vfiokit/watch-event/v1"}
    of_function = [event for event in events if event["subject"] == seen["bdf"]]
    drivers = [
        (event["kind"], event["source"], event["was"] or event["now"])
        for event in of_function
        if event["kind"] in ("bound", "unbound")
    ]
    # Each once, by the kernel's own word, in the order in which it happened.
    assert [kind for kind, _, _ in drivers] == ["unbound", "bound", "unbound"]
    assert {source for _, source, _ in drivers} == {"uevent"}
    assert drivers[0][2] == "nvme"
    nodes = [event for event in events if event["subject"].startswith("/dev/vfio/")]
    assert {event["kind"] for event in nodes} == {"node-added", "node-removed"}
    assert len({(event["kind"], event["subject"]) for event in nodes}) == len(nodes)


def _check_doctor(answer: dict[str, object]) -> None:
    document = answer["document"]
    assert isinstance(document, dict)
    severities = {each["id"]: each["severity"] for each in document["findings"]}
    assert severities["iommu"] == "ok"
    assert severities["interrupt-remapping"] == "ok"
    assert severities["vfio-pci"] == "ok"
    assert severities["address-spaces"] == "ok"
    assert severities["reset"] == "ok"
    # QEMU's unit says of itself that it is emulated.
    assert severities["iommu-emulated"] == "note"
    # The other tests assign this very function on this very kernel.
    assert document["verdict"] == "ready"
    assert answer["status"] == 0
    assert not {"problem", "warning"} & {each["severity"] for each in document["findings"]}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, set()),
        ({"iommu": "none"}, {"iommu", "interrupt-remapping"}),
        ({"append": ("intremap=off",)}, {"interrupt-remapping", "kernel-options"}),
    ],
    ids=["in order", "no IOMMU", "no interrupt remapping"],
)
def test_what_doctor_calls_ready_is_what_the_kernel_assigns(
    lab: Lab, changes: dict[str, object], wrong: set[str]
) -> None:
    (outcome,) = lab.with_changes(**changes).run_batch(
        [Scenario(scenarios.doctor_and_truth, ("edu0",), timeout_s=120)]
    )
    answer = outcome.require()
    document = answer["document"]
    problems = {each["id"] for each in document["findings"] if each["severity"] == "problem"}
    assert problems == wrong
    assert (document["verdict"] == "ready") == (answer["trouble"] == ""), answer["trouble"]
