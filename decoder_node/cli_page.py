"""`decoder-node page`: the web page alone, over an archive that another process serves; and the options of a page."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from decoder_node.page.process import PageOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def page_options(command: Command) -> Command:
    """What a page may be told, beside its address."""
    for option in (
        click.option(
            "--page-open", is_flag=True, help="Serve the page beyond loopback: whoever reaches it sees every scene."
        ),
        click.option(
            "--page-token", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
            help="Let whoever knows the token in FILE ask nodes for more through the page. Default: it only shows.",
        ),
        click.option(
            "--page-host", "page_hosts", multiple=True, metavar="NAME",
            help="A name that the page answers to, beside localhost. May be given several times.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def options_of(
    archive: Path, listen: str, hosts: tuple[str, ...], token: Path | None, open_page: bool, models: tuple[Path, ...],
    log_level: str = "info",
) -> PageOptions:  # fmt: skip
    """The options of a page, checked. Raises `MissingExtra` where it cannot run."""
    from decoder_node.decoding import NEEDS_GROUND, MissingExtra

    for name in ("fastapi", "jinja2", "rio_tiler", "uvicorn"):  # the page's own process would fail over and over
        if find_spec(name) is None:
            raise MissingExtra(f"the page needs {name}; {NEEDS_GROUND}")
    from decoder_node.page.process import PageOptions, check

    options = PageOptions(archive, listen, hosts, models, token, open_page, log_level)
    check(options)
    return options


@click.command()
@click.option(
    "--archive", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The archive's folder.",
)  # fmt: skip
@click.option("--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@page_options
@click.option(
    "--models", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of model bundles that an operator may install on nodes. May be given several times.",
)  # fmt: skip
def page(
    archive: Path, listen: str, page_hosts: tuple[str, ...], page_token: Path | None, page_open: bool,
    models: tuple[Path, ...],
) -> None:  # fmt: skip
    """Serve the web page of an archive, alone. `serve --page` does it beside the receiver.

    \b
    decoder-node page --archive /srv/archive --listen 127.0.0.1:8080
    """
    from decoder_node.ledger import Ledger
    from decoder_node.log import log_to_stderr
    from decoder_node.page.process import run

    log_to_stderr("info")
    options = options_of(archive.resolve(), listen, page_hosts, page_token, page_open, models)
    Ledger(archive, read_only=True).close()  # there is one, of this version
    run(options)
