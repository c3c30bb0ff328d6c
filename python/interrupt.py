"""Helps to stop functions. Embedded into the module and imported as `pinion_interrupt`."""


def raise_pending():
    """An exception that was raised in this thread from outside comes out here: Python looks for one where a function begins,
    and where a loop does."""
    for _ in (0, 1):
        pass
