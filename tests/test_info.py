"""The module's sections of INFO: which request shows them, their fields, what keeps a value on its line.

Contract: docs/contract/commands.md 7.1 and 9.27. Our escapes in values: a backslash is doubled; comma, CR and LF are
`\\x2c`, `\\r` and `\\n`.
"""

import ast
import re

import pytest

from helpers import wait_until
from probes import BUSY, executions, start

SECTIONS = ["rg", "rg_regisrations", "rg_plugins", "rg_python_stats", "rg_python_requirements", "rg_python_sessions"]
FIELDS = """desc reader mode numTriggered numSuccess numFailures numAborted lastRunDurationMS totalRunDurationMS
    avgRunDurationMS lastError regex eventTypes keyTypes hookCommands""".split()
REGISTER = "GB('KeysReader').register('x*')"


def info(server, *words):
    """INFO as a dict: title of a section to its lines."""
    head, text = server.raw().call("INFO", *words).split(b"\r\n", 1)
    assert head == b"$%d" % (len(text) - 2)
    sections = {}
    for line in text.decode().split("\r\n"):
        if line.startswith("# "):
            sections[line[2:]] = lines = []
        elif line:
            assert re.fullmatch(r"[^\n\r:]*:[^\n\r]*", line), line
            lines.append(line)
    return sections


def fields(server, section):
    """The lines of a section as a dict: name to value."""
    lines = info(server, section)[section]
    found = dict(line.split(":", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def registration(server):
    """The values of the only registration's line; what 1.2 does not have stands before PD."""
    [value] = fields(server, "rg_regisrations").values()
    values = dict(pair.split("=", 1) for pair in value.split(","))
    assert list(values)[: len(FIELDS)] == FIELDS
    assert list(values)[-1] == "PD"
    return values


def unescaped(value):
    """The text that was written with our escapes."""
    return re.sub(r"\\(\\|x2c|r|n)", lambda found: {"x2c": ",", "r": "\r", "n": "\n"}.get(found[1], "\\"), value)


# --- who asks for what ---


@pytest.mark.matrix
@pytest.mark.parametrize("word", ["everything", "modules", "rg"])
def test_requests_that_show_all(server, word):
    server.run(REGISTER)
    found = [title for title in info(server, word) if title.split("_")[0] == "rg"]
    assert [title for title in found if title in SECTIONS] == SECTIONS


@pytest.mark.matrix
@pytest.mark.parametrize("words", [[], ["default"], ["all"], ["server"]])
def test_requests_that_show_none(server, words):
    server.run(REGISTER)
    assert [title for title in info(server, *words) if title.startswith("rg")] == []


@pytest.mark.parametrize("section", SECTIONS[1:])
def test_one_section_by_name(server, section):
    server.run(REGISTER)
    assert list(info(server, section)) == [section]


def test_several_sections_by_name(server):
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("INFO takes one section on this server")
    assert list(info(server, "rg_plugins", "rg_python_stats")) == ["rg_plugins", "rg_python_stats"]


def test_every_field_has_the_prefix(server):
    server.run(REGISTER)
    lines = [line for title in SECTIONS for line in info(server, "rg")[title]]
    assert [line for line in lines if not line.startswith("rg_")] == []


# --- fields ---


def test_counts(server):
    def counts():
        found = fields(server, "rg")
        return found["rg_nexecutions"], found["rg_nregistrations"]

    assert counts() == ("0", "0")
    server.run(REGISTER)
    start(server, "GB('KeysReader').run('k', noScan=True)", "done")
    assert counts() == ("1", "1")
    server.client().execute_command("RG.DROPEXECUTION", *executions(server))
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    assert counts() == ("0", "0")


def test_plugins(server):
    assert info(server, "rg_plugins") == {"rg_plugins": ["rg_GearsPythonPlugin:version=10000"]}


def test_python_stats(server):
    found = fields(server, "rg_python_stats")
    assert list(found) == ["rg_TotalAllocated", "rg_PeakAllocated", "rg_CurrAllocated"]
    total, peak, current = (int(value) for value in found.values())
    assert total >= peak >= current
    assert int(server.client().execute_command("RG.PYSTATS")[1]) >= total


def test_nothing_registered(server):
    sections = info(server, "rg")
    assert sections.get("rg_regisrations", []) == sections.get("rg_python_sessions", []) == []


def test_a_whole_registration_line(server):
    server.run(REGISTER, "ID", "s")
    [entry] = server.registrations()
    [line] = info(server, "rg_regisrations")["rg_regisrations"]
    assert line.startswith(
        f"rg_{entry['id']}:desc=None,reader=KeysReader,mode=async,numTriggered=0,numSuccess=0,numFailures=0,"
        "numAborted=0,lastRunDurationMS=0,totalRunDurationMS=0,avgRunDurationMS=0,lastError=None,regex=x*,"
        "eventTypes=None,keyTypes=None,hookCommands=None,"
    )
    assert line.endswith(f",PD={entry['PD'].replace(',', '|')}")


def test_arguments_of_a_registration(server):
    server.run(
        """
        GB('KeysReader', desc='orders').register(
            'order:*', mode='async_local', eventTypes=['set', 'keymiss'], keyTypes=['stream', 'empty'],
            commands=['GET', 'mget'])
        """
    )
    found = registration(server)
    assert [found[name] for name in ("desc", "mode", "regex")] == ["orders", "async_local", "order:*"]
    lists = [found[name] for name in ("eventTypes", "keyTypes", "hookCommands")]
    assert lists == ["[set|keymiss]", "[stream|empty]", "[GET|mget]"]


def test_one_line_for_each_registration(server):
    server.run(f"{REGISTER}\n{REGISTER}")
    expected = {f"rg_{entry['id']}" for entry in server.registrations()}
    assert set(fields(server, "rg_regisrations")) == expected


def test_pd_in_a_registration_line(server):
    server.run(REGISTER, "ID", "s", "DESCRIPTION", "a demo")
    text = registration(server)["PD"]
    assert "," not in text
    assert ast.literal_eval(text.replace("|", ",")) == ast.literal_eval(server.registrations()[0]["PD"])


def test_statistics_of_a_registration(server):
    server.run("import time\nGB().foreach(lambda r: time.sleep(0.003) or 1 / int(r['value'])).register('x*')")
    for value in (1, 0, 1):
        server.client().set("x", value)
        server.wait_idle()
    found = registration(server)
    names = ("numTriggered", "numSuccess", "numFailures", "numAborted", "lastError")
    assert [found[name] for name in names] == ["3", "2", "1", "0", "None"]
    assert int(found["totalRunDurationMS"]) >= 9 > int(found["lastRunDurationMS"]) - 1000
    assert float(found["avgRunDurationMS"]) == pytest.approx(int(found["totalRunDurationMS"]) / 3)


# --- sessions ---


def test_sessions(server):
    for identifier in ["b", "a_", "B"]:
        server.run(REGISTER, "ID", identifier, "DESCRIPTION", "it's, one")
    found = fields(server, "rg_python_sessions")
    assert list(found) == ["rg_B", "rg_a_", "rg_b"]
    by_name = {ast.literal_eval(entry["PD"])["sessionName"]: entry["PD"] for entry in server.registrations()}
    for name, text in by_name.items():
        assert unescaped(found[f"rg_{name}"]) == text


def test_dead_sessions_come_last(server):
    server.run(BUSY.replace(".run('k', noScan=True)", ".register('x', mode='async_local')"), "ID", "b")
    server.client().set("x", 1)
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    for identifier in ["b", "c", "a"]:
        server.run(REGISTER, "ID", identifier, "UPGRADE")
    lines = info(server, "rg_python_sessions")["rg_python_sessions"]
    assert [line.split(":")[0] for line in lines] == ["rg_a", "rg_b", "rg_c", "rg_b"]
    states = [ast.literal_eval(line.split(":", 1)[1]) for line in lines]
    assert [(state["linkedTo"], state["dead"]) for state in states] == [("primary", False)] * 3 + [("None", True)]
    assert (states[-1]["refCount"], states[-1]["registrationsList"]) == (1, [])
    server.client().set("go", 1)
    wait_until(lambda: len(info(server, "rg_python_sessions")["rg_python_sessions"]) == 3)


# --- escapes ---


TEXTS = [
    ("a,b", r"a\x2cb"),
    ("a\\b", r"a\\b"),
    ("a\r\nb", r"a\r\nb"),
    ("\\n,\n", r"\\n\x2c\n"),
    ("# rg\r\nrg_nexecutions:9", r"# rg\r\nrg_nexecutions:9"),
    ("a=b|c:d é", "a=b|c:d é"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "written"), TEXTS)
def test_descriptions_stay_in_their_field(server, text, written):
    server.run(f"GB('KeysReader', desc={text!r}).register('x*')")
    assert registration(server)["desc"] == written


@pytest.mark.parametrize(("text", "written"), TEXTS[:-1])
def test_errors_stay_in_their_field(server, text, written):
    server.run(f"GB('KeysReader').map(lambda record: flat_error({text!r})).register('x*')")
    server.client().set("x", 1)
    server.wait_idle()
    assert registration(server)["lastError"] == written


def test_a_traceback_stays_in_its_field(server):
    server.run("GB('KeysReader').map(lambda record: {}[1, 2]).register('x*')")
    server.client().set("x", 1)
    server.wait_idle()
    [entry] = server.registrations()
    assert unescaped(registration(server)["lastError"]) == entry["RegistrationData"]["lastError"]


@pytest.mark.parametrize(("text", "written"), TEXTS[:-1])
def test_arguments_stay_in_their_field(server, text, written):
    server.run(f"GB('KeysReader').register({text!r}, eventTypes=[{text!r}, 'set'])")
    found = registration(server)
    assert (found["regex"], found["eventTypes"]) == (written, f"[{written}|set]")


@pytest.mark.parametrize("text", [text for text, _ in TEXTS] + ["it's \"so\"", "{'a': 1}"])
def test_descriptions_of_sessions_stay_in_their_line(server, text):
    server.run(REGISTER, "ID", "s", "DESCRIPTION", text)
    [entry] = server.registrations()
    assert unescaped(fields(server, "rg_python_sessions")["rg_s"]) == entry["PD"]
    assert unescaped(registration(server)["PD"]) == entry["PD"].replace(",", "|")


def test_a_client_library_can_read_it(server):
    server.run("GB('KeysReader', desc='a,b\\nc').register('x*')", "ID", "s")
    found = server.client().info("rg")
    assert found["rg_nregistrations"] == 1
    line = found[f"rg_{server.registrations()[0]['id']}"]
    assert (line["desc"], line["reader"], line["numTriggered"]) == (r"a\x2cb\nc", "KeysReader", 0)


# --- under load ---


def test_info_while_functions_run(server):
    server.run("GB('KeysReader').foreach(lambda r: execute('INCR', 'n')).register('x*')", "ID", "s")
    client = server.client()
    for number in range(200):
        client.set(f"x{number}", 1)
        if number % 10 == 0:
            found = registration(server)
            done = sum(int(found[name]) for name in ("numSuccess", "numFailures", "numAborted"))
            assert done <= int(found["numTriggered"]) == number + 1
    server.wait_idle()
    assert registration(server)["numSuccess"] == "200"


def test_info_inside_functions(server):
    server.run("GB('KeysReader').map(lambda r: execute('SET', 'out', execute('INFO', 'rg'))).register('x')")
    server.client().set("x", 1)
    server.wait_idle()
    assert "numTriggered=1" in server.client().get("out")


def test_info_in_lua_and_in_transactions(server):
    client = server.client()
    assert "rg_nexecutions:0" in client.eval("return redis.call('INFO', 'rg')", 0)
    raw = server.raw()
    raw.call("MULTI")
    raw.call("INFO", "rg")
    assert b"rg_nexecutions:0\r\n" in raw.call("EXEC")
