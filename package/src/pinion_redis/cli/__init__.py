"""The command `pinion`: one module for each subcommand, each with a function `command` whose docstring is its help.

Exit codes: 0 done; 1 the server or a script said no, or a check failed; 2 wrong usage; 3 no server reached; 4 no such thing.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pinion_redis import ModuleMissing, __version__
from pinion_redis.cli import call, deploy, doctor, exporter, key, list_, new, path, profile, rm, run, show, top
from pinion_redis.cli.output import fail
from pinion_redis.errors import PinionError

app = typer.Typer(
    name="pinion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Python functions inside Redis and Valkey: run a server, deploy functions, watch them.",
    epilog="Exit codes: 0 done, 1 the server or a script said no, 2 wrong usage, 3 no server reached, 4 no such thing.",
)
for name, module in {
    "run": run,
    "new": new,
    "deploy": deploy,
    "list": list_,
    "show": show,
    "key": key,
    "rm": rm,
    "call": call,
    "profile": profile,
    "top": top,
    "doctor": doctor,
    "exporter": exporter,
    "path": path,
}.items():
    app.command(name)(module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pinion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options in front of the subcommand."""


def main() -> None:
    """The entry point: errors are one line, and an exit code."""
    try:
        app()
    except PinionError as error:
        fail(f"{error}; {error.advice}" if error.advice else str(error), error.exit_code)
    except ModuleMissing as error:
        fail(str(error), 4)
    except BrokenPipeError:
        fail("", 1)
