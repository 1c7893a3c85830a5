"""`encoder-node`: encode scenes, keep them in an outbox, send them down.

The commands are in `cli_encode`, `cli_run` and `cli_outbox`.
"""

from __future__ import annotations

from pathlib import Path

import click

from downlink import __version__
from downlink.errors import DownlinkError
from encoder_node.cli_encode import encode, submit
from encoder_node.cli_outbox import models, resend, status
from encoder_node.cli_run import run
from encoder_node.options import FULL, Commands

__all__ = ["FULL", "main"]


def _configure(ctx: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """Options that the file gives become the defaults of every command that has them."""
    if value is not None:
        from encoder_node.config import read_config

        try:
            given = read_config(value)
        except DownlinkError as error:
            raise click.ClickException(str(error)) from error
        ctx.default_map = dict.fromkeys(main.commands, given)
        ctx.default_map["encode"] = {key: value for key, value in given.items() if key != "reference"}  # there, a file
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="encoder-node")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), callback=_configure, is_eager=True, expose_value=False,
    help="TOML file whose keys are the names of the options (rate_kbps = 2000).",
)  # fmt: skip
def main() -> None:
    """The satellite side: turns scenes into small streams and gets them down.

    \b
    encoder-node encode scene.tif scene.dl
    encoder-node submit scene.tif --outbox /var/lib/encoder-node
    encoder-node run --outbox /var/lib/encoder-node --ground ground.example:50551
    """


for command in (encode, submit, run, status, resend, models):
    main.add_command(command)
