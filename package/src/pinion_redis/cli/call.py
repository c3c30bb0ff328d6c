"""`pinion call`: calls a trigger."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import out, print_json
from pinion_redis.connection import Server
from pinion_redis.errors import NotFound


@server_options
def command(
    server: Server,
    trigger: Annotated[str, typer.Argument(help="The name that the function was registered with.")],
    arguments: Annotated[Optional[list[str]], typer.Argument(help="Arguments of the function.", metavar="ARGUMENT...")] = None,
    key: Annotated[Optional[str], typer.Option("--key", help="Run where this key is (RG.TRIGGERONKEY).")] = None,
    as_json: Json = False,
) -> None:
    """Call a function that was registered with trigger=NAME, and print its results, each on a line."""
    words = ["RG.TRIGGER", trigger] if key is None else ["RG.TRIGGERONKEY", trigger, key]
    try:
        reply = server.call(*words, *(arguments or []))
    except NotFound:
        raise NotFound(f"no function is registered with trigger={trigger!r}: see `pinion list`") from None
    if as_json:
        print_json(reply)
        return
    for result in reply if isinstance(reply, list) else [reply]:
        out.print(_text(result), markup=False)


def _text(value: Any) -> str:
    return "(nil)" if value is None else str(value)
