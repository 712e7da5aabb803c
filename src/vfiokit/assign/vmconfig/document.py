"""An assessment as what JSON can carry."""

from __future__ import annotations

from typing import Any

from vfiokit.assign.vmconfig.assessment import Assessment, View
from vfiokit.p2p.guest_topology import expander_addresses
from vfiokit.pci.capability.express import PortType


def body(assessment: Assessment) -> dict[str, Any]:
    """The document ``vm-plan`` without its envelope."""
    settings = assessment.settings
    return {
        "recommended": str(assessment.recommended),
        "why": assessment.why,
        "functions": [str(bdf) for bdf in assessment.views[0].plan.functions.values()],
        "variants": [_view(view) for view in assessment.views],
        "omitted": {str(variant): why for variant, why in assessment.omitted.items()},
        "pairs": _pairs(assessment),
        "machine": {
            "memory": settings.memory,
            "cpus": settings.cpus,
            "hugepages": settings.hugepages or None,
            "iommufd": settings.iommufd,
            "pci_hole64": settings.hole64 or None,
        },
        "cliques": {str(bdf): number for bdf, number in assessment.cliques.numbers.items()},
        "cliques_left_out": list(assessment.cliques.left_out),
        "together": [
            {
                "group": each.group,
                "assigned": [str(bdf) for bdf in each.assigned],
                "others": [str(bdf) for bdf in each.others],
            }
            for each in assessment.together
        ],
        "overlaps": [
            {
                "port": str(each.port),
                "function": str(each.function),
                "bar": each.bar,
                "start": each.start,
                "size": each.size,
            }
            for each in assessment.overlaps
        ],
        "prerequisites": list(assessment.prerequisites),
        "host_settings": _host_settings(assessment),
    }


def _view(view: View) -> dict[str, Any]:
    plan = view.plan
    ports = [
        {
            "name": name,
            "address": str(place.bdf),
            "type": _type(view, name),
            "mirrors": str(plan.mirrors[name]) if name in plan.mirrors else None,
        }
        for name, place in plan.places.items()
        if name not in plan.functions
    ]
    expanders = expander_addresses(plan)
    return {
        "variant": str(plan.variant),
        "viommu": str(plan.viommu),
        "topology": str(plan.blueprint),
        "expanders": [
            {
                "name": bridge.name,
                "address": str(expanders[bridge.name]),
                "bus": bridge.bus,
                "numa_node": plan.numa.get(bridge.name),
            }
            for bridge in plan.blueprint.host_bridges[1:]
        ],
        "ports": ports,
        "functions": [
            {"name": name, "host": str(bdf), "guest": str(plan.address(bdf))}
            for name, bdf in plan.functions.items()
        ],
        "groups": []
        if view.grouping is None
        else [[str(bdf) for bdf in group.members] for group in view.grouping.groups],
        "score": view.score._asdict(),
        "limits": list(plan.limits),
    }


def _type(view: View, name: str) -> str | None:
    kind: PortType | None = view.topology[view.plan.places[name].bdf].port_type
    return None if kind is None else kind.name.lower().replace("_", "-")


def _pairs(assessment: Assessment) -> list[dict[str, Any]]:
    found = []
    for index, pair in enumerate(assessment.views[0].pairs):
        beliefs = {}
        for view in assessment.views:
            seen = view.pairs[index]
            beliefs[str(view.plan.variant)] = {
                "map_type": seen.guest.map_type.value,
                "distance": seen.guest.distance,
                "code": seen.guest.code,
                "verdict": seen.verdict.name.lower(),
                "notes": list(seen.notes),
            }
        found.append(
            {
                "one": str(pair.one),
                "other": str(pair.other),
                "host": {
                    "map_type": pair.host.map_type.value,
                    "distance": pair.host.distance,
                    "code": pair.host.code,
                    "redirecting": [str(bdf) for bdf in pair.host.redirecting],
                    "reason": pair.host.reason,
                    "route": pair.route.value,
                    "works": pair.works,
                },
                "guest": beliefs,
            }
        )
    return found


def _host_settings(assessment: Assessment) -> dict[str, Any] | None:
    remedy = assessment.remedy
    if remedy is None:
        return None
    return {
        "config_acs": remedy.config_acs if remedy.changes else None,
        "setpci": list(remedy.setpci),
        "obstacles": list(remedy.obstacles),
    }
