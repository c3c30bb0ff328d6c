"""The names that scripts see in the server, for editors and type checkers: see script.pyi.

    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from pinion_redis.script import *

There is nothing to import when a script runs; tests run scripts with `pinion_redis.testing`.
"""

raise ImportError("pinion_redis.script is for type checkers: import it under `if TYPE_CHECKING:`")
