"""What the documents say exists: every command in them can be typed, every command explains itself."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from downlink.cli import LAZY
from downlink.cli import main as downlink

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAKE = re.compile(r"^make (\w+)", re.MULTILINE)

# the contract that others rely on (DESIGN, section 5)
PROMISED = """
encoder-node encode --model --quality --bits-per-sample --psnr
encoder-node submit --outbox --model --quality --bits-per-sample --psnr --priority
encoder-node run --outbox --ground --watch --once --contact --contacts
encoder-node status --outbox --json
encoder-node resend --outbox --json
decoder-node serve --archive --listen --workers
decoder-node list --archive --json
decoder-node decode
downlink evaluate --model --quality --against --json --report
downlink profile --json --picture
downlink train
downlink export
downlink models list
downlink models show
downlink models verify
downlink models split
"""


def programs() -> dict[str, click.Group]:
    nodes = {
        name: importlib.import_module(f"{name.replace('-', '_')}.cli").main for name in ("encoder-node", "decoder-node")
    }
    return {"downlink": downlink, **nodes}


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group`, with the words that call it."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


@pytest.fixture(scope="module")
def known() -> dict[str, click.Command]:
    pytest.importorskip("rich", reason="the evaluation extra is not installed")
    return {words: command for name, group in programs().items() for words, command in commands(group, name)}


def check_line(line: str, known: dict[str, click.Command], where: str) -> None:
    words = shlex.split(line.replace("…", ""), comments=True)
    path = " ".join(words[:2])
    rest = words[2:]
    if isinstance(known.get(path), click.Group) and rest:
        path, rest = f"{path} {rest[0]}", rest[1:]
    assert path in known, f"{where}: there is no command `{path}`"
    options = {option for parameter in known[path].params for option in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{where}: `{path}` has no option {word}"


def typed(text: str) -> Iterator[str]:
    """The lines of code blocks that call one of our programs, continuations joined."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            bare = line.strip().removeprefix("$ ")
            if bare.split(" ")[0] in ("downlink", "encoder-node", "decoder-node"):
                yield bare


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_exists(document: Path, known: dict[str, click.Command]) -> None:
    for line in typed(document.read_text()):
        if not line.split(" ", 1)[1].startswith("-"):
            check_line(line, known, document.name)


def test_the_readme_has_the_commands_of_all_three_users() -> None:
    lines = " | ".join(typed((ROOT / "README.md").read_text()))
    for needed in ("encoder-node submit", "encoder-node run", "decoder-node serve", "downlink evaluate"):
        assert needed in lines


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for block in FENCE.findall(document.read_text()):
            for target in MAKE.findall(block):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


@pytest.mark.parametrize("line", PROMISED.strip().splitlines())
def test_the_promised_commands_and_options_are_there(line: str, known: dict[str, click.Command]) -> None:
    check_line(line, known, "the contract")


def test_every_command_and_option_explains_itself(known: dict[str, click.Command]) -> None:
    silent = [words for words, command in known.items() if not command.help]
    assert silent == []
    silent = [
        f"{words} {option.opts[0]}"
        for words, command in known.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help and option.opts != ["--version"]
        if not isinstance(option.type, click.Choice)  # its choices are shown
    ]
    assert silent == []


def test_every_command_of_the_nodes_has_an_example(known: dict[str, click.Command]) -> None:
    """The nodes' commands, which are typed on machines where nobody reads a manual."""
    without = [
        words
        for words, command in known.items()
        if words.startswith(("encoder-node", "decoder-node")) and words not in (command.help or "")
    ]
    assert without == []


def test_the_short_help_of_lazy_commands_is_their_own(known: dict[str, click.Command]) -> None:
    for name, (_, _, text) in LAZY.items():
        first = (known[f"downlink {name}"].help or "").splitlines()[0]
        assert text, first


def test_the_readme_states_no_figure_that_no_command_printed() -> None:
    """Results stand between the markers, and name the command that printed them."""
    text = (ROOT / "README.md").read_text()
    before, _, rest = text.partition("<!-- results: begin")
    results, _, after = rest.partition("<!-- results: end -->")
    assert results, "the section for results is gone"
    assert not re.search(r"\d\s*(dB|bits/sample|%)", before + after)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_named_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"
    for target in re.findall(r"`((?:docs|tests|training|proto|models)/[\w./-]+\.\w+)`", text):
        assert (ROOT / target).exists(), f"{document.name} names {target}"
