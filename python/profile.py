"""The text of RG.PYPROFILE. Embedded into the module and imported as `pinion_profile`. Contract:
docs/contract/commands.md 1.15."""

import io
import pstats


class _Snapshot:
    """What a profiler has measured so far, in the shape that `pstats` takes; the profiler may be at work."""

    def __init__(self, profiler):
        profiler.snapshot_stats()
        self.stats = profiler.stats

    def create_stats(self):
        pass


def report(profilers, order):
    """Statistics, callers and callees (str) of all `profilers` together, sorted by the pstats key `order`.

    Raises KeyError for an unknown key.
    """
    out = io.StringIO()
    snapshots = [snapshot for snapshot in map(_Snapshot, profilers) if snapshot.stats]
    statistics = pstats.Stats(*snapshots, stream=out).sort_stats(order)
    statistics.print_stats()
    statistics.print_callers()
    statistics.print_callees()
    return out.getvalue()
