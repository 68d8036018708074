"""Results and checkpoints on disk: written whole, proven when read, never half-believed.

results.py (the store) keeps what result.py proves; checkpoint.py keeps the state of a run that was
interrupted; disk.py has the operations on files that survive a pulled plug. Nothing here trains.
"""

from dlops.store.result import Result
from dlops.store.results import Store, project_root, publish, reports_root

__all__ = ["Result", "Store", "project_root", "publish", "reports_root"]
