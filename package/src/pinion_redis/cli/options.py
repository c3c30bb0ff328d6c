"""The options that all subcommands have which talk to a server, once."""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any, Callable, Optional, get_type_hints

import typer

from pinion_redis.connection import DEFAULT_URL, Address, Server, connect

_GROUP = "Server"


def _options() -> dict[str, tuple[Any, Any]]:
    def option(*names: str, env: Optional[str] = None, help: str) -> Any:
        return typer.Option(*names, envvar=env, help=help, rich_help_panel=_GROUP)

    text = Optional[str]
    url_help = "redis://, rediss:// (TLS), unix:///path, redis+sentinel://host:port,.../service; any node of a cluster."
    return {
        "url": (Annotated[str, option("--url", "-u", env="PINION_URL", help=url_help)], DEFAULT_URL),
        "user": (Annotated[text, option("--user", env="PINION_USER", help="ACL user.")], None),
        "password": (Annotated[text, option("--password", env="PINION_PASSWORD", help="Password; better in the variable.")], None),
        "ca_file": (Annotated[text, option("--tls-ca", env="PINION_TLS_CA", help="Certificates to trust (rediss://).")], None),
        "cert_file": (Annotated[text, option("--tls-cert", env="PINION_TLS_CERT", help="Own certificate.")], None),
        "key_file": (Annotated[text, option("--tls-key", env="PINION_TLS_KEY", help="Key of the own certificate.")], None),
        "insecure": (Annotated[bool, option("--tls-insecure", help="Do not check the server's certificate.")], False),
        "timeout": (
            Annotated[float, option("--timeout", help="Seconds to wait for a connection or a reply; 0: for ever.")],
            10.0,
        ),
    }


def address_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a subcommand the options of a server; its parameter `address` gets an `Address`."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    options = _options()

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        address = Address(**{name: given.pop(name) for name in options})
        return function(address=address, **given)

    own = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "address"
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    hints.pop("address", None)
    command.__annotations__ = {**hints, **{name: annotation for name, (annotation, _) in options.items()}}
    return command


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same; the parameter `server` gets a `Server` that has answered, which is closed afterwards."""

    @functools.wraps(function)
    def with_server(*, address: Address, **given: Any) -> Any:
        server: Server = connect(address)
        try:
            return function(server=server, **given)
        finally:
            server.close()

    hints = get_type_hints(function, include_extras=True)
    hints.pop("server")
    signature = inspect.signature(function)
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "server"]
    address = inspect.Parameter("address", inspect.Parameter.KEYWORD_ONLY, annotation=Address)
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    with_server.__signature__ = signature.replace(parameters=[*parameters, address])  # type: ignore[attr-defined]
    with_server.__annotations__ = {**hints, "address": Address}
    del with_server.__wrapped__
    return address_options(with_server)


Json = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
