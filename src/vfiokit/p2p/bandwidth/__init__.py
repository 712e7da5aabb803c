"""How fast: bandwidth of DMA between functions and to memory, predicted from the topology.

:mod:`vfiokit.p2p.bandwidth.sketch` makes a topology of a machine that is only described.
"""

from vfiokit.p2p.bandwidth.flow import Flow, Kind, parse_flows
from vfiokit.p2p.bandwidth.lift import Lift, lifts
from vfiokit.p2p.bandwidth.link import Link
from vfiokit.p2p.bandwidth.parameter import (
    PARAMETERS,
    Parameters,
    parse_settings,
    read_parameters,
)
from vfiokit.p2p.bandwidth.predict import (
    AS_CAPTURED,
    Changes,
    Limit,
    Load,
    Prediction,
    Rate,
    Resource,
    predict,
)
from vfiokit.p2p.bandwidth.route import Direction, Memory

__all__ = [
    "AS_CAPTURED",
    "PARAMETERS",
    "Changes",
    "Direction",
    "Flow",
    "Kind",
    "Lift",
    "Limit",
    "Link",
    "Load",
    "Memory",
    "Parameters",
    "Prediction",
    "Rate",
    "Resource",
    "lifts",
    "parse_flows",
    "parse_settings",
    "predict",
    "read_parameters",
]
