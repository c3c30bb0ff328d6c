"""GearsBuilder: the local steps, errors in them, the arguments of reader, run and register, reuse of a builder.

Contract: docs/contract/python-api.md 3, docs/contract/readers-and-events.md 1; natural order of flatmap:
docs/contract/README.md.
"""

import ast
import re

import pytest

from helpers import wait_until
from probes import executions, in_script, last_line, raised


def outcome(server, steps):
    """The results of steps that start from one record."""
    reply = server.run(f"GB('KeysReader'){steps}.run('k', noScan=True)")
    assert reply[1] == []
    return reply[0]


def fill(server, number=5):
    server.client().mset({f"key:{index}": index for index in range(number)})


# --- steps ---


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (".map(lambda r: None)", ["None"]),
        (".flatmap(lambda r: [3, 1, 2])", ["3", "1", "2"]),
        (".flatmap(lambda r: [[1, 1], []])", ["[1, 1]", "[]"]),
        (".flatmap(lambda r: [])", []),
        (".flatmap(lambda r: type('L', (list,), {})([1, 2]))", ["1", "2"]),
        (".flatmap(lambda r: (1, 2))", ["(1, 2)"]),
        (".flatmap(lambda r: 'ab')", ["ab"]),
        (".flatmap(lambda r: {1})", ["{1}"]),
        (".flatmap(lambda r: None)", ["None"]),
        (".flatmap(lambda r: [0, 1, '', 'a', None, [], [0]]).filter(lambda r: r)", ["1", "a", "[0]"]),
        (".foreach(lambda r: 'ignored').map(lambda r: r['key'])", ["k"]),
        (".filter(lambda r: r.update(x=1) or True).map(lambda r: r['x'])", ["1"]),
        (".flatmap(lambda r: [1, 2, 3]).accumulate(lambda a, r: (a or 0) + r)", ["6"]),
        (".flatmap(lambda r: [1, 2]).accumulate(lambda a, r: None)", ["None"]),
        (".flatmap(lambda r: []).accumulate(lambda a, r: 1)", []),
        (".flatmap(lambda r: [1, 2]).accumulate(lambda a, r: (a or []) + [r]).flatmap(lambda r: r)", ["1", "2"]),
        (".flatmap(lambda r: [5, 5]).count()", ["2"]),
        (".filter(lambda r: False).count()", []),
        (".flatmap(lambda r: [1, 2, 3, 4]).limit(2)", ["1", "2"]),
        (".flatmap(lambda r: [1, 2, 3, 4]).limit(2, 1)", ["2", "3"]),
        (".flatmap(lambda r: [1, 2, 3, 4]).limit(9, 3)", ["4"]),
        (".flatmap(lambda r: [1, 2]).limit(0)", []),
        (".flatmap(lambda r: [1, 2]).limit(True)", ["1"]),
        (".flatmap(lambda r: [1, 2, 3]).limit(2).count()", ["2"]),
        (".flatmap(lambda r: [1, 2, 3]).accumulate(lambda a, r: r).limit(1)", ["3"]),
    ],
)
def test_steps(server, steps, expected):
    assert outcome(server, steps) == expected


def test_steps_accept_keywords(server):
    steps = ".map(f=lambda r: [1, 2, 3]).flatmap(f=lambda r: r).filter(f=lambda r: r > 1).foreach(f=lambda r: r)"
    assert outcome(server, f"{steps}.limit(length=1, start=1).accumulate(f=lambda a, r: [a, r])") == ["[None, 3]"]


def test_records_pass_by_identity(server):
    script = "it = object()\nGB('KeysReader').map(lambda r: it).filter(lambda r: r is it).count().run('k', noScan=True)"
    assert server.run(script) == [["1"], []]


def test_operations_return_the_same_builder(server):
    body = """
        b = GB('KeysReader')
        f = lambda *args: 1
        made = [b.map(f), b.filter(f), b.flatmap(f), b.foreach(f), b.accumulate(f), b.limit(1), b.count()]
        return all(one is b for one in made)
        """
    assert in_script(server, body) is True


@pytest.mark.parametrize(("limit", "calls"), [("2", 2), ("2, 3", 5), ("0", 0)])
def test_limit_does_not_read_more_than_it_needs(server, limit, calls):
    fill(server)
    steps = f".filter(lambda r: execute('INCR', 'calls')).limit({limit})"
    server.run(f"GB('KeysReader'){steps}.run('key:*')")
    assert int(server.client().get("calls") or 0) == calls


def test_a_record_passes_all_steps_before_the_next_one(server):
    fill(server, 3)
    server.run(
        """
        def note(name):
            return lambda record: execute('RPUSH', 'trace', name + str(record))
        steps = GB('KeysReader').foreach(note('0')).flatmap(lambda r: [r['key'], r['key']])
        steps.foreach(note('1')).foreach(note('2')).run('key:*', readValue=False)
        """
    )
    trace = server.client().lrange("trace", 0, -1)
    assert [entry[0] for entry in trace] == ["0", "1", "2", "1", "2"] * 3


# --- errors in steps ---


def test_the_reader_stops_after_the_first_error(server):
    fill(server)
    results, errors = server.run(
        """
        def second_fails(record):
            if execute('INCR', 'calls') == 2:
                raise ValueError('second')
            return 'first'
        GB('KeysReader').map(second_fails).run('key:*')
        """
    )
    assert (results, [last_line(error) for error in errors]) == (["first"], ["ValueError: second"])
    assert server.client().get("calls") == "2"


def test_records_in_the_chain_are_finished_after_an_error(server):
    steps = "GB('KeysReader').flatmap(lambda r: [0, 1, 2, 3]).map(lambda r: 12 // (r % 2)).run('k', noScan=True)"
    results, errors = server.run(steps)
    assert (results, len(errors)) == (["12", "12"], 2)


def test_count_counts_what_came_through(server):
    fill(server)
    check = "lambda r: execute('INCR', 'calls') != 2 or flat_error('second')"
    assert server.run(f"GB('KeysReader').filter({check}).count().run('key:*')") == [["1"], ["second"]]


def test_an_error_in_accumulate_starts_again(server):
    reply = server.run(
        """
        def gather(so_far, number):
            return flat_error('two') if number == 2 else (so_far or []) + [number]
        GB('KeysReader').flatmap(lambda r: [3, 2, 1, 0]).accumulate(gather).run('k', noScan=True)
        """
    )
    assert reply == [["[1, 0]"], ["two"]]


@pytest.mark.parametrize("operation", ["map", "filter", "flatmap", "foreach"])
def test_error_texts_begin_at_the_users_function(server, operation):
    script = f"def price(record):\n    raise ValueError('no price')\nGB().{operation}(price).run('k', noScan=True)"
    [error] = server.run(script)[1]
    frames = ["Traceback (most recent call last):\n", '  File "<string>", line 2, in price\n']
    assert ast.literal_eval(error) == [*frames, "ValueError: no price\n"]


def test_an_error_of_the_call_itself_has_no_traceback(server):
    text = "Error type: <class 'TypeError'>, Value: <lambda>() takes 0 positional arguments but 1 was given"
    assert server.run("GB('KeysReader').map(lambda: 1).run('k', noScan=True)") == [[], [text]]


@pytest.mark.parametrize("error", ["SystemExit(1)", "KeyboardInterrupt()", "GeneratorExit()"])
def test_any_exception_is_one_error(server, error):
    script = f"def leave(record):\n    raise {error}\nGB('KeysReader').map(leave).run('k', noScan=True)"
    for _ in range(5):  # more than there are workers: none was lost
        results, [text] = server.run(script)
        assert results == []
        assert last_line(text).startswith(error.split("(")[0])


# --- argument errors ---


@pytest.mark.parametrize("name", ["map", "filter", "flatmap", "foreach", "accumulate"])
def test_operations_check_their_argument(server, name):
    wrong_number = f"gears.error: wrong number of args to {name} function"
    assert raised(server, f"GB().{name}()") == wrong_number
    assert raised(server, f"GB().{name}(lambda r: 1, 2)") == wrong_number
    for value in ("1", "'text'", "None"):
        assert raised(server, f"GB().{name}({value})") == f"gears.error: {name} argument must be a function"


@pytest.mark.parametrize("args", ["'1'", "1.5", "None", "1, '1'", "1, 2.5"])
def test_limit_takes_numbers(server, args):
    assert raised(server, f"GB().limit({args})") == "gears.error: limit argument must be a number"


@pytest.mark.parametrize("args", ["", "1, 2, 3"])
def test_limit_takes_one_or_two_arguments(server, args):
    assert raised(server, f"GB().limit({args})") == "gears.error: wrong number of args to limit function"


@pytest.mark.parametrize("args", ["-1", "1, -1", "2 ** 64"])
def test_limit_refuses_numbers_out_of_range(server, args):
    error = raised(server, f"GB().limit({args})")
    assert error.startswith("gears.error: ") and "limit" in error


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("GB(1)", "reader argument must be a string"),
        ("GB(None)", "reader argument must be a string"),
        ("GB(1, desc=2)", "reader argument must be a string"),
        ("GB('KeysReader', desc=2)", "desc argument must be a string"),
        ("GB('Nothing', desc=2)", "desc argument must be a string"),
        ("GB('Nothing')", "The given reader does not exists"),
        ("GB('keysreader')", "The given reader does not exists"),
        ("GB().run(mode='sync')", "unknown execution mode: expected async_local or async, got sync"),
        ("GB().run(mode='later')", "unknown execution mode: expected async_local or async, got later"),
        ("GB().run(mode=1)", "execution mode must be a string"),
        ("GB().run(5)", "regex argument must be a string"),
        ("GB().run(5, mode=1)", "regex argument must be a string"),
        ("GB().run(noScan=1, mode=1)", "execution mode must be a string"),
        ("GB().register(mode=None)", "execution mode must be a string"),
        ("GB().register(mode='later')", "unknown execution mode: expected sync, async_local or async, got later"),
        ("GB().register(mode='later', onRegistered=1)", "unknown execution mode: expected sync, async_local or async, got later"),
        ("GB().register(5, onRegistered=1)", "OnRegistered argument must be a function"),
        ("GB().register(5, eventTypes=1)", "regex argument must be a string"),
        ("GB().register(eventTypes=1, keyTypes=1)", "given eventTypes is not iterable"),
        ("GB().register(eventTypes=[1])", "given event type is not string"),
        ("GB().register(keyTypes=1, readValue=1)", "given keyTypes is not iterable"),
        ("GB().register(keyTypes=[1])", "given key type is not string"),
        ("GB().register(keyTypes=['String'])", "unknown key type"),
        ("GB().register(readValue=None, commands=1)", "readValue is not boolean"),
        ("GB().register(commands=1)", "given commands is not iterable"),
        ("GB().register(commands=[1])", "given command type is not string"),
    ],
)
def test_argument_errors(server, call, error):
    assert raised(server, call) == f"gears.error: {error}"
    assert (server.registrations(), executions(server)) == ([], {})


# --- run, register and the builder itself ---


@pytest.mark.parametrize("call", ["GB('KeysReader', 'key:1').run()", "GB('KeysReader', 'key:1').run('')"])
def test_the_default_argument_is_used_without_pattern(server, call):
    fill(server)
    [record] = server.run(call)[0]
    assert ast.literal_eval(record)["key"] == "key:1"


def test_register_never_looks_at_the_default_argument(server):
    server.run("GB('KeysReader', 'q*').register()")
    assert server.registrations()[0]["RegistrationData"]["args"]["regex"] == "*"


def test_the_old_name_of_prefix_is_accepted_with_a_warning(server):
    server.run("GB('KeysReader').register('new*', regex='old*')")
    assert server.registrations()[0]["RegistrationData"]["args"]["regex"] == "old*"
    warning = "Using regex argument with register is deprecated and missleading, use prefix instead."
    wait_until(lambda: warning in server.log())


@pytest.mark.parametrize("call", ["run('none', {})", "register('none', {})"])
def test_unknown_keywords_are_ignored_with_one_warning(server, call):
    server.run(f"GB('KeysReader').{call.format('ExecutionThreadPool=1, nonsense=2')}")
    lines = wait_until(lambda: [line for line in server.log().splitlines() if "nonsense" in line])
    assert len(lines) == 1
    assert "ExecutionThreadPool" in lines[0] and " # " in lines[0]


def test_register_returns_the_id(server):
    returned = in_script(server, "return GB('KeysReader').register('x*')")
    assert re.fullmatch(r"0{40}-\d+", returned)
    assert [entry["id"] for entry in server.registrations()] == [returned]


def test_each_register_takes_a_snapshot(server):
    server.run(
        """
        builder = GB('KeysReader').foreach(lambda record: execute('INCR', 'first'))
        builder.register('x*', mode='sync')
        builder.foreach(lambda record: execute('INCR', 'second'))
        builder.register('x*', mode='sync')
        """
    )
    assert len({entry["id"] for entry in server.registrations()}) == 2
    client = server.client()
    client.set("x1", 1)
    assert (client.get("first"), client.get("second")) == ("2", "1")


def test_on_registered_stays_with_the_builder(server):
    server.run(
        """
        builder = GB('CommandReader')
        builder.register(trigger='one', onRegistered=lambda: execute('INCR', 'first'))
        builder.register(trigger='two')
        builder.register(trigger='three', onRegistered=lambda: execute('INCR', 'second'))
        builder.register(trigger='four', onRegistered=None)
        GB('CommandReader').register(trigger='five')
        """
    )
    client = server.client()
    assert (client.get("first"), client.get("second")) == ("2", "2")


def test_mode_and_on_registered_by_place(server):
    client = server.client()
    client.set("k", 1)
    reply = server.raw().call("RG.PYEXECUTE", "GB().map(lambda r: 7).run('k', False, True, 'async_local')")
    assert reply == b"*2\r\n*1\r\n:7\r\n*0\r\n"
    server.run("GB().foreach(lambda r: execute('INCR', 'seen')).register('x*', True, True, 'sync', lambda: execute('INCR', 'ready'))")
    client.set("x1", 1)
    [entry] = server.registrations()
    assert (client.get("ready"), client.get("seen"), entry["RegistrationData"]["mode"]) == ("1", "1", "sync")
    assert "unknown execution mode" in raised(server, "GB().run('k', False, True, 'later')")


def test_a_run_uses_the_steps_present(server):
    server.run(
        """
        builder = GB('KeysReader').map(lambda record: 1)
        builder.register('x*')
        builder.map(lambda number: int(number) + 1).run('k', noScan=True)
        """
    )
    [execution] = executions(server)
    assert server.client().execute_command("RG.GETRESULTSBLOCKING", execution) == [["2"], []]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("", b"$1\r\n7"), (", convertToStr=1", b"$1\r\n7"), (", convertToStr=False", b":7"), (", convertToStr=0", b":7")],
)
def test_convert_to_str(server, argument, expected):
    reply = server.raw().call("RG.PYEXECUTE", f"GB().map(lambda r: 7).run('k', noScan=True{argument})")
    assert reply == b"*2\r\n*1\r\n" + expected + b"\r\n*0\r\n"
