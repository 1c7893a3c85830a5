"""`python -m tests.chaos.edge OUTBOX GROUND`: what `encoder-node run` runs, with little patience and short pauses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import encoder_node.sender
from encoder_node.log import log_to_stderr
from encoder_node.outbox import Outbox
from encoder_node.pace import Backoff
from encoder_node.sender import Options, Sender

PATIENCE_S = 2.0  # instead of two minutes


def main() -> None:
    encoder_node.sender.Backoff = lambda: Backoff(0.02, 1.0)  # type: ignore[misc,assignment]
    log_to_stderr("info")
    with Outbox(Path(sys.argv[1])) as box:
        asyncio.run(Sender(box, Options(ground=sys.argv[2], patience_s=PATIENCE_S)).run())


if __name__ == "__main__":
    main()
