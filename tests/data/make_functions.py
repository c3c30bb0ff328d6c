"""Writes functions.json: functions as clients of other minor versions of Python pickle them (cloudpickle, base64).

    make_functions.py CLOUDPICKLE PYTHON...      CLOUDPICKLE: the folder that holds the package
"""

import json
import subprocess
import sys
from pathlib import Path

MAKE = r'''
import base64, json, sys
import cloudpickle
source = """
def comprehension(x):
    return [y * 2 for y in range(3)]

def loop(x):
    total = 0
    for y in range(int(x['value'])):
        if y % 2 == 0 and y is not None:
            total += y
    return total

def guarded(x):
    try:
        with open('/dev/null') as file:
            return file.read() or str(x)
    except (OSError, ValueError) as error:
        return repr(error)

def generator(x):
    yield from (y for y in 'abc')

async def coroutine(x):
    import asyncio
    await asyncio.sleep(0)
    return f'{x!r}'

class Callable:
    def __call__(self, x):
        return {key: value for key, value in {'a': 1}.items()}

nested = lambda x: (lambda y: sorted({z for z in (x, y)}, key=str))(x)
"""
names = {}
exec(source, names)
names['made'] = names.pop('Callable')()
functions = {name: value for name, value in names.items() if not name.startswith('__')}
print(json.dumps({name: base64.b64encode(cloudpickle.dumps(value, 4)).decode() for name, value in functions.items()}))
'''


def main(folder: str, *pythons: str) -> None:
    samples = {}
    for python in pythons:
        version = subprocess.check_output([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True)
        made = subprocess.check_output([python, "-c", MAKE], env={"PYTHONPATH": folder}, text=True)
        samples[version.strip()] = json.loads(made)
    Path(__file__).with_name("functions.json").write_text(json.dumps(samples, indent=1) + "\n")


main(*sys.argv[1:])
