"""Helps to stop functions. Embedded into the module and imported as `pinion_interrupt`."""


def wait_for_interrupt():
    """Runs until an exception is raised in this thread from outside."""
    while True:
        pass
