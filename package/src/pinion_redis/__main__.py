"""`python -m pinion_redis`: the command `pinion`."""

from pinion_redis.cli import main

main()
