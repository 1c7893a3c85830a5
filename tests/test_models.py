"""Model bundles over the link: whole, checked, tried and active, or as if nothing had been asked."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import encoder_node.models
from downlink.bundle import JSON
from downlink.frame import PART_BYTES_MAX, Answer, BundlePart, Progress, Verdict
from encoder_node.config import ConfigError
from encoder_node.models import Models
from encoder_node.outbox import Outbox
from encoder_node.sender import Options, Sender
from tests.installing import AGAIN, ASK, bundle_files, install_of, installed, name_of, send


@pytest.fixture(autouse=True)
def any_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no ONNX is refused elsewhere (test_graph.py)."""
    monkeypatch.setattr("downlink.bundle.check_graph", lambda content, what: None)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def test_a_bundle_becomes_active_when_it_has_passed_its_test(models: Models, tmp_path: Path) -> None:
    files = bundle_files()
    assert (name_of(models), models.previous) == (None, None)
    assert send(models, files) is None
    assert name_of(models) is None  # not yet
    assert installed(models, files).verdict is Verdict.DONE
    assert (name_of(models), models.previous) == ("made", "")
    again = Models(tmp_path)
    assert name_of(again) == "made"
    assert again.begin(ASK, install_of(files)) == Answer(
        ASK, Verdict.DONE, f"bundle {install_of(files).bundle_id[:12]} is active"
    )
    assert list((tmp_path / "models" / "incoming").iterdir()) == []


def test_one_that_fails_its_test_is_refused_and_goes(models: Models) -> None:
    installed(models, bundle_files("old"))
    files = bundle_files("new")
    assert send(models, files, AGAIN) is None
    answer = models.tested("BundleError: its prior gives other indices")
    assert answer is not None
    assert (answer.verdict, "other indices" in answer.message) == (Verdict.REFUSED, True)
    assert name_of(models) == "old"
    assert not (models.folder / install_of(files).bundle_id).exists()


def test_it_goes_on_where_it_stopped(models: Models, tmp_path: Path) -> None:
    files = bundle_files()
    content = b"".join(files.values())
    models.begin(ASK, install_of(files))
    assert models.part(BundlePart(ASK, 0, content[:PART_BYTES_MAX])) == Progress(ASK, PART_BYTES_MAX)
    assert models.part(BundlePart(ASK, PART_BYTES_MAX, content[PART_BYTES_MAX : PART_BYTES_MAX + 9])) == Progress(
        ASK, PART_BYTES_MAX + 9
    )
    assert models.begin(ASK, install_of(files)) == Progress(ASK, PART_BYTES_MAX + 9)  # another stream
    after = Models(tmp_path)  # another process: the last part may not have been synced
    assert after.begin(ASK, install_of(files)) == Progress(ASK, 9)
    assert installed(after, files).verdict is Verdict.DONE


def test_parts_that_do_not_fit_are_left_out(models: Models) -> None:
    files = bundle_files()
    size = install_of(files).size
    assert models.part(BundlePart(ASK, 0, b"x")) is None  # nobody asked
    models.begin(ASK, install_of(files))
    assert models.part(BundlePart(AGAIN, 0, b"x")) is None
    assert models.part(BundlePart(ASK, 7, b"x")) is None  # one before it is missing
    assert models.part(BundlePart(ASK, size, b"x")) is None
    assert models.part(BundlePart(ASK, 0, b"x" * 5)) == Progress(ASK, 5)
    assert models.part(BundlePart(ASK, 2, b"x")) == Progress(ASK, 5)  # twice


@pytest.mark.parametrize("name", [JSON, "tables.bin", "encoder.onnx"])
def test_what_does_not_have_its_hash_is_refused(models: Models, name: str) -> None:
    installed(models, bundle_files("old"))
    files = bundle_files("new")
    install = install_of(files)
    files[name] = bytes([files[name][0] ^ 1]) + files[name][1:]
    content, answer = b"".join(files.values()), None
    models.begin(AGAIN, install)
    for start in range(0, len(content), PART_BYTES_MAX):
        answer = models.part(BundlePart(AGAIN, start, content[start : start + PART_BYTES_MAX]))
    assert isinstance(answer, Answer)
    assert answer.verdict is Verdict.REFUSED
    assert "sha" in answer.message.lower()
    assert str(models.folder) not in answer.message
    assert name_of(models) == "old"
    assert models.to_test() is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda files: files.update({"more.bin": b"x"}), "more.bin came with it"),
        (lambda files: files.pop("selftest.json"), "lacks selftest.json"),
    ],
)
def test_a_bundle_of_other_files_is_refused(
    models: Models, change: Callable[[dict[str, bytes]], object], reason: str
) -> None:
    files = bundle_files()
    change(files)
    answer = send(models, files)
    assert answer is not None
    assert answer.verdict is Verdict.REFUSED
    assert reason in answer.message


def test_a_rollback_brings_the_one_of_before_back_once(models: Models, tmp_path: Path) -> None:
    answer = models.rollback("c3" * 16)
    assert (answer.verdict, answer.message) == (Verdict.REFUSED, "no bundle was active before the present one")
    installed(models, bundle_files("first"))
    installed(models, bundle_files("second"), AGAIN)
    assert models.rollback("d4" * 16).verdict is Verdict.DONE
    assert name_of(models) == "first"
    assert Models(tmp_path).rollback("d4" * 16).verdict is Verdict.DONE  # heard twice: done once
    assert name_of(models) == "first"
    models.rollback("e5" * 16)
    assert name_of(models) == "second"
    installed(models, bundle_files("third"), "f6" * 16)
    assert len([path for path in models.folder.iterdir() if len(path.name) == 64]) == 2  # and no more


def test_a_rollback_of_the_first_bundle_is_to_the_operators_own(models: Models) -> None:
    installed(models, bundle_files("first"))
    assert models.rollback("d4" * 16).message == "the operator's own bundle is active again"
    assert name_of(models) is None
    assert models.previous is not None
    models.rollback("e5" * 16)
    assert name_of(models) == "first"


def test_the_operators_word_stands(tmp_path: Path) -> None:
    fixed = Models(tmp_path, fixed="this node's operator has chosen its model: --model universal")
    answer = send(fixed, bundle_files())
    assert answer is not None
    assert (answer.verdict, answer.message) == (Verdict.REFUSED, fixed._fixed)
    assert fixed.rollback(AGAIN).verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    ("ground", "taken"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("ground.example:1", False),
    ],
)
def test_nobody_who_plays_the_ground_can_install_a_bundle(tmp_path: Path, ground: str, taken: bool) -> None:
    """Without TLS it must be on the same machine, or sign what it sends."""
    models = Models(tmp_path / "box")
    with Outbox(tmp_path / "box", create=True) as box:
        Sender(box, Options(ground), models)
        said = models.begin(ASK, install_of(bundle_files()))
    assert isinstance(said, Progress) is taken
    assert taken or "it takes bundles over TLS, or signed" in str(said)


def test_a_full_disk_is_said_before_anything_comes(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_node.models, "free_bytes", lambda folder: 4_200_000)
    answer = send(models, bundle_files())
    assert answer is not None
    assert "the disk has 4200000 bytes left" in answer.message


def test_a_spoilt_state_is_the_operators_own_bundle(models: Models) -> None:
    installed(models, bundle_files())
    (models.folder / "state.json").write_bytes(b"\x00{")
    assert models.active is None
    assert installed(models, bundle_files(), AGAIN).verdict is Verdict.DONE


def test_a_bundle_that_the_disk_has_lost_is_sent_again(models: Models) -> None:
    files = bundle_files()
    installed(models, files)
    assert models.active is not None
    (models.active / "tables.bin").write_bytes(b"other bytes")
    assert installed(models, files, AGAIN).verdict is Verdict.DONE  # the same: all of it came again
    assert name_of(models) == "made"
    shutil.rmtree(models.active)
    assert models.active is None


class Crash(BaseException):
    pass


OPERATIONS = ("fsync", "fdatasync", "rename", "pwrite", "unlink", "mkdir", "rmdir", "open")


@contextlib.contextmanager
def crash_at(number: int, patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The process dies in the n-th operation on the disk."""
    count = [0]

    def counted(work: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            count[0] += 1
            if count[0] == number:
                raise Crash
            return work(*arguments, **options)

        return operation

    with patch.context() as here:
        for name in OPERATIONS:
            here.setattr(os, name, counted(getattr(os, name)))
        yield count


def test_a_crash_at_any_operation_leaves_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was asked is done in the end, when the ground asks again."""
    old, new = bundle_files("old"), bundle_files("new")
    before = tmp_path / "before"
    before.mkdir()
    installed(Models(before), old)
    seen = set()
    for number in itertools.count(1):
        folder = tmp_path / f"{number}"
        shutil.copytree(before, folder)
        with crash_at(number, monkeypatch) as count:
            try:
                installed(Models(folder), new, AGAIN)
            except Crash:
                pass
        after = Models(folder)
        seen.add(name_of(after))
        if count[0] < number:
            break
        answer = after.begin(AGAIN, install_of(new))
        if isinstance(answer, Progress):
            answer = installed(after, new, AGAIN)
        assert isinstance(answer, Answer)
        assert answer.verdict is Verdict.DONE, answer
        assert name_of(after) == "new"
        assert after.previous == install_of(old).bundle_id
        shutil.rmtree(folder)
    assert seen == {"old", "new"}
    assert number > 15


def test_everything_is_synced_before_it_is_active(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file of the bundle, its folder, and the names, before the rename that makes it active."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(source: str, target: str) -> None:
        done.append(f"-> {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    files = bundle_files()
    installed(models, files)
    end = done.index("-> state.json")
    bundle = done.index(f"-> {install_of(files).bundle_id}")
    assert set(files) <= set(done[:bundle])
    assert f"{ASK}.new" in done[:bundle]
    assert "models" in done[bundle:end]
    assert done[end + 1] == "models"


# --- signatures ---


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path, Callable[[bytes], bytes]]:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = tmp_path / "bundles.key", tmp_path / "bundles.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public, key.sign


def test_only_signed_bundles_are_taken_where_that_is_demanded(
    tmp_path: Path, keys: tuple[Path, Path, Callable[[bytes], bytes]]
) -> None:
    from encoder_node.signature import Key

    _, public, sign = keys
    files, other = bundle_files(), bundle_files("other")
    models = Models(tmp_path, Key(public))
    answer = send(models, files)
    assert answer is not None
    assert "it is not signed; this node takes signed ones only" in answer.message
    answer = send(models, files, AGAIN, sign(install_of(other).signed))
    assert answer is not None
    assert "its signature is not of this node's key" in answer.message
    assert models.part(BundlePart(AGAIN, 0, b"x")) is None
    assert send(models, files, "c3" * 16, sign(install_of(files).signed)) is None
    assert models.to_test() is not None


def test_a_key_that_cannot_be_used_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    from encoder_node.signature import Key

    with pytest.raises(ConfigError, match="No such file"):
        Key(tmp_path / "no.pem")
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(ConfigError, match="no public key in PEM"):
        Key(tmp_path / "bad.pem")
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r"takes the package cryptography; pip install 'latent-downlink\[signed\]'"):
        Key(tmp_path / "bad.pem")
