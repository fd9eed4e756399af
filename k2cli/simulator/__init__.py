"""A local simulation of the exchange: its protocol, limits and failures.

market: a synthetic market, made of instruments, frames and publication times; recording: recorded
frames; rest: the REST side; wire: requests, paths, control messages, framing; connection: one
client; server: all of them.
"""

from k2cli.simulator.options import GARBAGE, RestFault, SimulatorOptions
from k2cli.simulator.server import Simulator, open_simulator, running_simulator

__all__ = [
    "GARBAGE",
    "RestFault",
    "Simulator",
    "SimulatorOptions",
    "open_simulator",
    "running_simulator",
]
