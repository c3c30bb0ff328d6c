"""`pinion doctor`: is this server fit, and what to do if not."""

from __future__ import annotations

from typing import Annotated

import typer

from pinion_redis.checks import Finding, check
from pinion_redis.cli.options import Json, address_options
from pinion_redis.cli.output import escape, out, print_json
from pinion_redis.connection import Address

_SIGNS = {"ok": "[green]ok  [/]", "warning": "[yellow]warn[/]", "problem": "[red]FAIL[/]"}


@address_options
def command(
    address: Address,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    as_json: Json = False,
) -> None:
    """Check a server: rights, options, Python, versions, links between shards, functions that fail; and say what to do."""
    findings = check(address)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            _print(finding)
    levels = {finding.level for finding in findings}
    if "problem" in levels or (strict and "warning" in levels):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    out.print(f"{_SIGNS[finding.level]} {escape(finding.subject)}: {escape(finding.text)}")
    if finding.advice:
        out.print(f"     [dim]do:[/] {escape(finding.advice)}")
