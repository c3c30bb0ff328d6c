"""Results of functions as replies, byte for byte, in RESP2 and RESP3.

Contract: docs/contract/commands.md 0.4, docs/contract/python-api.md 4.4 and 4.5, with the decisions of
docs/contract/README.md (None, tuple, dict, bytearray, integers beyond 64 bit, numbers that look like errors).
"""

from random import Random

import pytest

BIG = str(2**63)


def bulk(text):
    data = text if isinstance(text, bytes) else text.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items):
    return b"*%d\r\n%s" % (len(items), b"".join(items))


def reply(server, script, protocol=2):
    raw = server.raw()
    raw.call("HELLO", protocol)
    return raw.call("RG.PYEXECUTE", script)


def run(expression, convert=False):
    return f"GB('KeysReader').map(lambda record: {expression}).run('k', noScan=True, convertToStr={convert})"


def only(item):
    """The whole reply of a run with one result."""
    return array(array(item), array())


BOTH = [
    ("True", b":1\r\n"),
    ("False", b":0\r\n"),
    ("0", b":0\r\n"),
    ("-7", b":-7\r\n"),
    ("2 ** 63 - 1", b":9223372036854775807\r\n"),
    ("-2 ** 63", b":-9223372036854775808\r\n"),
    ("2 ** 63", bulk(BIG)),
    ("-2 ** 63 - 1", bulk("-9223372036854775809")),
    ("10 ** 40", bulk("1" + "0" * 40)),
    ("2.5", bulk("2.500000")),
    ("-2.5", bulk("-2.500000")),
    ("-0.0", bulk("-0.000000")),
    ("1e100", bulk(f"{1e100:.6f}")),
    ("float('inf')", bulk("inf")),
    ("float('-inf')", bulk("-inf")),
    ("float('nan')", bulk("nan")),
    ("'text'", bulk("text")),
    ("'é\\0x'", bulk("é\0x")),
    ("''", bulk("")),
    ("'+'", bulk("+")),
    ("'-'", bulk("-")),
    ("'+fine'", b"+fine\r\n"),
    ("'-bad'", b"-bad\r\n"),
    ("'-ERR bad'", b"-ERR bad\r\n"),
    ("'+a\\r\\nb'", b"+a  b\r\n"),
    ("'-a\\r\\nb'", b"-a  b\r\n"),
    ("' +x'", bulk(" +x")),
    ("b'\\xff\\0+'", bulk(b"\xff\0+")),
    ("b'-x'", bulk("-x")),
    ("b''", bulk("")),
    ("bytearray(b'\\xff-')", bulk(b"\xff-")),
    ("[]", array()),
    ("[1, 'a', [2.5, ['+x']]]", array(b":1\r\n", bulk("a"), array(bulk("2.500000"), array(b"+x\r\n")))),
    ("(1, (b'x',))", array(b":1\r\n", array(bulk("x")))),
    ("[2 ** 63, '-e']", array(bulk(BIG), b"-e\r\n")),
    ("{1}", bulk("PY RECORD")),
    ("object()", bulk("PY RECORD")),
    ("range(3)", bulk("PY RECORD")),
    ("[object()]", array(bulk("PY RECORD"))),
    ("len", bulk("PY RECORD")),
]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(("expression", "expected"), BOTH)
def test_values(server, expression, expected, protocol):
    assert reply(server, run(expression), protocol) == only(expected)


@pytest.mark.parametrize(
    ("expression", "resp2", "resp3"),
    [
        ("None", b"$-1\r\n", b"_\r\n"),
        ("[None]", b"*1\r\n$-1\r\n", b"*1\r\n_\r\n"),
        ("{}", b"*0\r\n", b"%0\r\n"),
        ("{'a': 1}", array(bulk("a"), b":1\r\n"), b"%1\r\n$1\r\na\r\n:1\r\n"),
        (
            "{'a': {1: (None,)}}",
            array(bulk("a"), array(b":1\r\n", array(b"$-1\r\n"))),
            b"%1\r\n$1\r\na\r\n%1\r\n:1\r\n*1\r\n_\r\n",
        ),
    ],
)
def test_values_that_depend_on_the_protocol(server, expression, resp2, resp3):
    assert reply(server, run(expression), 2) == only(resp2)
    assert reply(server, run(expression), 3) == only(resp3)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("b'by'", bulk("b'by'")),
        ("bytearray(b'by')", bulk("bytearray(b'by')")),
        ("2.5", bulk("2.5")),
        ("-2.5", bulk("-2.5")),
        ("-5", bulk("-5")),
        ("-2 ** 70", bulk(str(-(2**70)))),
        ("float('-inf')", bulk("-inf")),
        ("None", bulk("None")),
        ("True", bulk("True")),
        ("{'a': 1}", bulk("{'a': 1}")),
        ("[-5, '+x']", bulk("[-5, '+x']")),
        ("'text'", bulk("text")),
        ("'+fine'", b"+fine\r\n"),
        ("'-bad'", b"-bad\r\n"),
        ("'-5'", b"-5\r\n"),
        ("type('T', (), {'__str__': lambda self: 'its text'})()", bulk("its text")),
    ],
)
def test_converted_to_str_first(server, expression, expected, protocol):
    assert reply(server, run(expression, convert=True), protocol) == only(expected)


ODD_TEXTS = ["", "it's", '"', "'\"", "\\", "\t\r\n", "\0\x1b\x7f", "\xe4", "\u20ac", "+x", "-x", "a" * 300]


def odd_value(random, depth):
    """Values whose text we make, and some whose text is Python's, nested."""
    kind = random.randrange(12 if depth else 8)
    nested = lambda: odd_value(random, depth - 1)
    if kind < 2:
        return random.choice(ODD_TEXTS)
    if kind < 4:
        return random.choice([0, -1, 2**63 - 1, -(2**63), 2**63, 10**30])
    if kind < 8:
        return random.choice([None, True, False, 1.5, float("inf"), b"\xff", frozenset({1}), (), [], {}])
    if kind == 8:
        return [nested() for _ in range(random.randrange(4))]
    if kind == 9:
        return tuple(nested() for _ in range(random.randrange(4)))
    names = [*ODD_TEXTS, 1, None, (1, "x"), False]
    return {random.choice(names): nested() for _ in range(random.randrange(4))}


def test_the_text_of_a_value_is_that_of_python(server):
    """Many of these texts are made without Python; 8 levels at most, and no subclass."""
    random = Random(7)
    deep = "deep"
    for _ in range(12):
        deep = [deep]
    values = [deep, *(odd_value(random, depth) for depth in [0, 1, 2, 3] * 100)]
    odd = ["type('S', (str,), {'__repr__': lambda self: 'mine'})('x')", "__import__('collections').OrderedDict(a=1)"]
    odd += ["type('N', (int,), {'__str__': lambda self: 'mine'})(1)", "(lambda l: l.append(l) or l)([])"]
    listed = ", ".join([*map(repr, values), *odd]).replace("inf", "float('inf')")
    script = f"def odd():\n    yield from [{listed}]\nGB('PythonReader').map(lambda value: [value])"
    client = server.client()
    ours, errors = client.execute_command("RG.PYEXECUTE", script + ".run(odd)")
    assert (len(ours), errors) == (len(values) + len(odd), [])
    pythons, _ = client.execute_command("RG.PYEXECUTE", script + ".map(str).run(odd, convertToStr=False)")
    assert ours == pythons


@pytest.mark.parametrize("protocol", [2, 3])
def test_stored_results_are_converted_alike(server, protocol):
    raw = server.raw()
    raw.call("HELLO", protocol)
    script = run("[-5, '-bad', None, {'a': b'x'}]")
    execution = raw.call("RG.PYEXECUTE", script, "UNBLOCKING").split(b"\r\n")[1]
    waited = raw.call("RG.GETRESULTSBLOCKING", execution)
    assert waited == raw.call("RG.GETRESULTS", execution) == reply(server, script, protocol)


def test_errors_are_bulk_strings(server):
    assert reply(server, run("flat_error('+no\\r\\nluck')")) == array(array(), array(bulk("+no\r\nluck")))


# --- values that cannot be sent ---


def survives(server, script):
    """The server replies something and lives."""
    raw = server.raw(timeout=30)
    raw.send("RG.PYEXECUTE", script)
    assert raw.socket.recv(1)
    raw.socket.close()
    assert server.raw().call("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        "value = []\n    value.append(value)",
        "value = {}\n    value['self'] = [value]",
        "value = []\n    for _ in range(100000): value = [value]",
        "value = ()\n    for _ in range(100000): value = (value,)",
        "value = {}\n    for _ in range(100000): value = {'k': value}",
    ],
    ids=["own list", "own dict", "deep list", "deep tuple", "deep dict"],
)
def test_endless_and_deep_values_do_no_harm(server, make, convert):
    script = f"def make(record):\n    {make}\n    return value\n"
    survives(server, f"{script}GB('KeysReader').map(make).run('k', noScan=True, convertToStr={convert})")


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    "expression", ["'\\ud800'", "'+\\ud800'", "['\\ud800']", "{'\\ud800': 1}", "flat_error('\\ud800')"]
)
def test_texts_that_are_not_unicode_do_no_harm(server, expression, convert):
    survives(server, run(expression, convert))


@pytest.mark.parametrize("script", ["flat_error('\\ud800')", "raise ValueError('\\ud800')"])
def test_errors_that_are_not_unicode_do_no_harm(server, script):
    survives(server, script)


@pytest.mark.parametrize("convert", [False, True])
def test_values_whose_text_cannot_be_had_do_no_harm(server, convert):
    script = "class Mute:\n    def __str__(self): raise SystemExit\n    __repr__ = __str__\n"
    survives(server, script + run("[Mute()]", convert))
    survives(server, script + "class E(Exception):\n    __str__ = Mute.__str__\nraise E")


CHANGED = """
class Big(int):
    def __str__(self):
        changed.clear()
        return 'long'

class Text(str):
    def encode(self, *arguments):
        changed.clear()
        return b'other'

changed = {}

def made(first):
    changed.update({first: 1, 'a': 2, 'b': 3})
    return changed

GB('KeysReader').foreach(lambda x: override_reply(made(Big(1 << 70)))).register('k*', commands=['get'], eventTypes=['keymiss'], mode='sync')
GB('CommandReader').map(lambda x: made(Text('\\ud800'))).register(trigger='text', convertToStr=False)
"""


@pytest.mark.matrix
def test_a_dict_that_changes_while_a_reply_is_made_of_it(server):
    """What its names say of themselves is a user's code."""
    server.run(CHANGED)
    rest = b":1\r\n$1\r\na\r\n:2\r\n$1\r\nb\r\n:3\r\n"
    assert server.raw().call("GET", "k") == b"*6\r\n$4\r\nlong\r\n" + rest
    assert server.raw().call("RG.TRIGGER", "text") == b"*1\r\n*6\r\n$6\r\n\\ud800\r\n" + rest
    assert "panicked" not in server.log()
