"""An estimate of pi by random points, computed on all shards at once. No keys are needed."""

import random

POINTS = 200_000  # on each shard


def inside(shard):
    chance = random.Random(shard)
    return sum(chance.random() ** 2 + chance.random() ** 2 < 1 for _ in range(POINTS)), POINTS


(GB('ShardsIDReader', desc='pi')
 .map(inside)
 .aggregate((0, 0), lambda total, part: (total[0] + part[0], total[1] + part[1]),
            lambda total, part: (total[0] + part[0], total[1] + part[1]))
 .map(lambda total: 4 * total[0] / total[1])
 .run())
