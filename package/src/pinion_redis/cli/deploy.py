"""`pinion deploy`: functions go to a server."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from pinion_redis import scripts
from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import err, escape, note, out, print_json, warn
from pinion_redis.connection import Server
from pinion_redis.deployment import Deployment, deploy
from pinion_redis.errors import PinionError
from pinion_redis.figures import last_line


@server_options
def command(
    server: Server,
    path: Annotated[Path, typer.Argument(help="A script, or a folder of scripts that belong together.", metavar="FILE|DIR")],
    name: Annotated[Optional[str], typer.Option("--id", help="The session's id; else the name of the file or folder.")] = None,
    description: Annotated[Optional[str], typer.Option("--description", help="What `pinion list --sessions` shows.")] = None,
    requirement: Annotated[
        Optional[list[str]], typer.Option("--requirement", "-r", help="A package that the functions need; may be repeated.")
    ] = None,
    upgrade: Annotated[bool, typer.Option(help="Replace the session if there is one; else that is an error.")] = True,
    reinstall: Annotated[bool, typer.Option("--reinstall", help="Install the packages although they are known.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if something may never fire.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Deploy functions. The server takes all of them or, if anything fails, none, and keeps what it had."""
    script = scripts.read(path)
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise PinionError(f"--id must be made of letters, digits, - and _, got {name!r}")
    script = replace(script, id=name or script.id, requirements=[*script.requirements, *(requirement or [])])
    if dry_run:
        files = ", ".join(file.name for file in script.files)
        needed = ", ".join(script.requirements) or "no packages"
        note(f"would deploy {files} as session {script.id} with {needed}, {len(script.text)} characters")
        return
    waiting = f"installing {', '.join(script.requirements)} and deploying" if script.requirements else "deploying"
    with err.status(f"{escape(waiting)} {escape(script.id)}"):
        done = deploy(server, script, upgrade=upgrade, description=description, force_requirements=reinstall)
    if as_json:
        lists = {name: [vars(entry) for entry in getattr(done, name)] for name in ("added", "removed", "renewed")}
        print_json({"id": done.id, **lists, "results": done.results, "errors": done.errors, "warnings": done.warnings()})
        warn_of_nothing(done)
    else:
        print_changes(done)
    for error in done.errors:
        err.print(f"[red]pinion:[/] the run failed: {escape(last_line(error))}")
    if done.errors or done.is_loss() or (strict and done.warnings()):
        raise typer.Exit(1)


def print_changes(done: Deployment) -> None:
    """What a deployment has changed, a line for each registration, and what may never fire."""
    for sign, entries in (("[red]-[/]", done.removed), ("[green]+[/]", done.added), ("[blue]=[/]", done.renewed)):
        for entry in entries:
            same = " [dim](same events, new code)[/]" if entry in done.renewed else ""
            out.print(f"{sign} {escape(entry.reader)} {escape(entry.events())} [dim]{escape(entry.mode)}[/]{same}")
    for result in done.results or []:
        out.print(str(result), markup=False)
    if not warn_of_nothing(done):
        note(f"session {done.id}: {_counted(len(done.added) + len(done.renewed))}")
    for text in done.warnings():
        warn(f"may never fire: {text}")


def warn_of_nothing(done: Deployment) -> bool:
    """Warns of a script that registers nothing, unless that is all right; returns whether it does."""
    if done.is_loss():
        warn(f"the script of session {done.id} registers nothing: what it had before is gone, {_counted(len(done.removed))}")
    elif done.is_empty() and done.results is None:
        warn(f"the script of session {done.id} ran, but registers nothing and has no run")
    else:
        return False
    return True


def _counted(registrations: int) -> str:
    return f"{registrations} registration{'' if registrations == 1 else 's'}"
