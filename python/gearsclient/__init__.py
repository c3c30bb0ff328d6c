"""The names of the package `gearsclient`, for scripts that import it inside the server."""

from .redisgears_builder import *
