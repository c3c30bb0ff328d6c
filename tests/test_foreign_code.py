"""Functions that another minor version of Python has pickled are refused, wherever pickles come in; they never run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import redis

from helpers import Server

pytestmark = pytest.mark.matrix

SAMPLES = json.loads((Path(__file__).parent / "data/functions.json").read_text())
ALL = [(version, name) for version, functions in SAMPLES.items() for name in functions]
HERE = "import sys\nlog('this is Python %d.%d' % sys.version_info[:2])"

LOADERS = {
    "cloudpickle": "import cloudpickle\nf = cloudpickle.loads(image)",
    "pickle": "import pickle\nf = pickle.loads(image)",
    "loads": "f = loads(image)",
    "load": "import io\nf = load(io.BytesIO(image))",
    "the pickle module in Python": "import pickle, io\nf = pickle._Unpickler(io.BytesIO(image)).load()",
}


def own_version(server: Server) -> str:
    server.run(HERE)
    return server.log().rsplit("this is Python ", 1)[1].split()[0]


def attempt(server: Server, image: str, loader: str) -> str:
    script = f"import base64\nimage = base64.b64decode({image!r})\n{LOADERS[loader]}\nGB('ShardsIDReader').map(f).run()"
    try:
        return str(server.run(script))
    except Exception as error:
        return str(error)


def shown(version: str, own: str) -> str:
    return f"was compiled by Python {version}, this is Python {own}: functions run only on the minor version"


@pytest.mark.parametrize("version", SAMPLES)
def test_all_kinds_of_functions(server: Server, version: str) -> None:
    own = own_version(server)
    for name, image in SAMPLES[version].items():
        said = attempt(server, image, "cloudpickle")
        if version == own:
            continue
        # What is the same in both versions may as well run.
        assert "compiled by Python" in said or (name == "made" and said.startswith("[[")), f"{name}: {said}"
        assert version in said or name == "made", f"{name}: {said}"
        assert f"this is Python {own}" in said or name == "made", f"{name}: {said}"
    assert server.client().ping()


@pytest.mark.parametrize("loader", LOADERS)
def test_by_whatever_is_loaded(server: Server, loader: str) -> None:
    own = own_version(server)
    for version, functions in SAMPLES.items():
        if version != own:
            said = attempt(server, functions["comprehension"], loader)
            assert "compiled by Python" in said and version in said and f"this is Python {own}" in said, said


def test_the_text(server: Server) -> None:
    own = own_version(server)
    version = "3.12" if own != "3.12" else "3.13"
    assert f"the code of 'comprehension' {shown(version, own)}" in attempt(
        server, SAMPLES[version]["comprehension"], "cloudpickle"
    )


@pytest.mark.parametrize("loader", ["pickle.loads", "loads"])
def test_a_cloudpickle_that_does_not_know_this_python(server: Server, loader: str) -> None:
    """As 1.6 writes functions on 3.11, which gearsclient brings: with the parts that code objects had before."""
    script = f"""
        import pickle, sys
        c = (lambda x: x + 1).__code__
        parts = (1, 0, 0, c.co_nlocals, c.co_stacksize, c.co_flags, c.co_code, c.co_consts, (), ('x',), 'f', 'f', 1, b'', (), ())
        image = b'\\x80\\x02ccloudpickle.cloudpickle\\n_builtin_type\\n' + pickle.dumps(('CodeType',), 2)[2:-1] + b'R'
        image += pickle.dumps(parts, 2)[2:-1] + b'R.'
        if sys.version_info < (3, 11): raise ValueError('pickled by a cloudpickle that does not know Python')
        {loader}(image)
        """
    with pytest.raises(redis.ResponseError, match="pickled by a cloudpickle that does not know Python"):
        server.run(script)


def test_inside_a_function_and_in_a_coroutine(server: Server) -> None:
    own = own_version(server)
    version = "3.12" if own != "3.12" else "3.13"
    for kind in ("def", "async def"):
        said = server.run(f"""
            import base64, cloudpickle
            image = base64.b64decode({SAMPLES[version]["comprehension"]!r})
            {kind} f(x):
                return cloudpickle.loads(image)(x)
            GB('ShardsIDReader').map(f).run()
            """)
        assert shown(version, own) in str(said)


def test_code_of_this_version_is_made_as_ever(server: Server) -> None:
    """Whatever cloudpickle carries, and what libraries change of code."""
    said = server.run("""
        import cloudpickle, asyncio, contextlib
        async def agen():
            yield 1
        async def run(x):
            @contextlib.asynccontextmanager
            async def opened():
                yield 2
            total = 0
            async with opened() as value:
                async for one in agen():
                    total += one + value
            try:
                match x:
                    case str(text) if text:
                        total += len([a for a in text if a is not None])
            except* ValueError:
                pass
            return total
        def renamed(x):
            for i in range(3):
                while i:
                    i -= 1
            return renamed.__code__.replace(co_name='other').co_name
        again = cloudpickle.loads(cloudpickle.dumps(run))
        GB('PythonReader').map(again).map(renamed).run(lambda: (yield 'abc'))
        """)
    assert said == [["other"], []]
