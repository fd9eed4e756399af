"""A local simulation of the exchange: its protocol, limits and failures.

market: a synthetic market; recording: recorded frames; wire: paths, control messages, framing;
connection: one client; server: all of them.
"""

from k2cli.simulator.options import GARBAGE, SimulatorOptions
from k2cli.simulator.server import Simulator, open_simulator, running_simulator

__all__ = ["GARBAGE", "Simulator", "SimulatorOptions", "open_simulator", "running_simulator"]
