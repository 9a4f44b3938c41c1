"""OGBench's experts, which collect one episode per call, by the benchmark's published procedures.

An episode depends on the seed and its number only. No JAX in here: worker processes import these files.
"""

from floq.data.collection.experts.episode import Rows
from floq.data.collection.experts.manipulation import ManipulationExpert
from floq.data.collection.experts.maze import MazeExpert

__all__ = ["ManipulationExpert", "MazeExpert", "Rows"]
