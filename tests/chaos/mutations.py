"""Ways to break the promises on purpose, each a small change of the code, and the test that must fail then.

`tests/test_promises.py` sees to it that every change still applies (so that nobody thinks a promise guarded that is
not); `make chaos` makes each one in a copy and runs its test. When code moves, move the change with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutation:
    """In `file`, `old` (which is there exactly once) becomes `new`; `test` notices."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS: Final = (
    Mutation(
        "the ground does not fsync chunks",
        "decoder_node/inbox.py",
        "start + arrival.incoming.span(arrival.index)[0])\n                file.sync()\n",
        "start + arrival.incoming.span(arrival.index)[0])\n",
        "tests/test_inbox.py::test_bytes_are_synced_before_the_ledger_says_so_and_renamed_before_the_scene_is_durable",
    ),
    Mutation(
        "the ground's ledger does not sync its commits",
        "decoder_node/ledger_file.py",
        'db.execute("PRAGMA synchronous = FULL")',
        'db.execute("PRAGMA synchronous = OFF")',
        "tests/test_ledger.py::test_the_disk_is_synced_at_every_commit",
    ),
    Mutation(
        "the ground acknowledges before it has committed",
        "downlink/session_ground.py",
        "        return [Commit(held)] if held else []",
        "        early: list[GroundAction] = [Send(Ack(i.scene_id, runs_of(n))) for i, n in _by_scene(held)]\n"
        "        return [*early, Commit(held)] if held else []",
        "tests/test_session_ground.py::test_nothing_is_acknowledged_before_it_is_committed",
    ),
    Mutation(
        "the ground ignores a chunk's checksum",
        "downlink/incoming.py",
        "        except Corrupt as error:\n            return str(error)\n        return None",
        "        except Corrupt:\n            return None\n        return None",
        "tests/test_session_ground.py::test_a_damaged_chunk_is_neither_stored_nor_acknowledged",
    ),
    Mutation(
        "nobody compares the hash over a whole scene",
        "downlink/stream.py",
        "    if found != manifest.payload_sha256:",
        "    if False:",
        "tests/test_link.py::test_a_refused_scene_does_not_hold_up_the_others",
    ),
    Mutation(
        "the ground forgets finished scenes",
        "decoder_node/inbox.py",
        "        if entry is not None and entry.durable_at is not None:\n"
        "            return SceneState(scene_id, State.DURABLE)\n"
        "        if entry is not None and self._disk.exists(self.stream_path(scene_id))",
        "        if False",
        "tests/test_inbox.py::test_a_finished_scene_leaves_a_tombstone",
    ),
    Mutation(
        "a scene is durable before its file is synced and in its place",
        "decoder_node/inbox.py",
        "        self._disk.sync(part)\n        self._disk.rename(part, self.stream_path(scene_id))",
        "        self._disk.rename(part, self.stream_path(scene_id))",
        "tests/test_inbox.py::test_bytes_are_synced_before_the_ledger_says_so_and_renamed_before_the_scene_is_durable",
    ),
    Mutation(
        "what is committed is written again",
        "decoder_node/inbox.py",
        "            group = [arrival for arrival in group if arrival.incoming.missing[arrival.index]]\n",
        "",
        "tests/test_inbox.py::test_a_forgery_with_the_right_checksum_never_replaces_what_is_committed",
    ),
    Mutation(
        "a scene that the disk fails ends the stream",
        "decoder_node/receiver.py",
        "        if is_full(error):",
        "        if True:",
        "tests/test_receiver.py::test_a_scene_that_the_disk_fails_does_not_hold_up_the_others",
    ),
    Mutation(
        "the outbox does not sync its commits",
        "encoder_node/outbox_file.py",
        'db.execute("PRAGMA synchronous = FULL")',
        'db.execute("PRAGMA synchronous = OFF")',
        "tests/test_outbox.py::test_the_disk_is_synced_at_every_commit",
    ),
    Mutation(
        "the edge believes that a scene is durable without its hash",
        "downlink/session_edge.py",
        "            if frame.payload_sha256 != scene.payload_sha256:",
        "            if False:",
        "tests/test_session_edge.py::test_nothing_is_forgotten_for_a_durable_without_the_manifests_hash",
    ),
    Mutation(
        "the ground talks to peers without a certificate",
        "decoder_node/identity.py",
        "require_client_auth=True",
        "require_client_auth=False",
        "tests/test_tls.py::test_without_a_valid_certificate_nothing_can_be_said",
    ),
    Mutation(
        "a node is let in with two names",
        "decoder_node/identity.py",
        "    if len(names) != 1 or names != of_dns:",
        "    if not names:",
        "tests/test_tls.py::test_a_certificate_must_name_exactly_one_node",
    ),
    Mutation(
        "nobody looks whose scene it is",
        "decoder_node/inbox.py",
        '        if entry is not None and entry.node not in ("", node):',
        "        if False:",
        "tests/test_tls.py::test_a_node_can_neither_send_nor_ask_for_anothers_scene",
    ),
    Mutation(
        "the ground listens to the world without TLS",
        "decoder_node/identity.py",
        "    if not local and tls is None and not insecure:",
        "    if False:",
        "tests/test_tls.py::test_without_tls_only_loopback_is_listened_on",
    ),
    Mutation(
        "a frame may hold as many chunks as it likes",
        "downlink/framing.py",
        "    if len(message.chunks) > FRAME_CHUNKS_MAX:",
        "    if False:",
        "tests/test_hostile.py::test_no_attack_takes_more_than_50_ms",
    ),
    Mutation(
        "what a zstd frame states is believed",
        "downlink/limits.py",
        '        at_most(size, bound, f"{what}: bytes stated by its zstd frame"',
        '        at_most(0, bound, f"{what}: bytes stated by its zstd frame"',
        "tests/test_limits.py::test_expand_refuses_what_is_not_one_frame_within_the_bound",
    ),
    Mutation(
        "workers may take all memory",
        "decoder_node/bounds.py",
        "        resource.setrlimit(what, (bound, bound))",
        "        pass",
        "tests/test_worker.py::test_a_scene_that_takes_too_much_is_quarantined_and_the_next_is_decoded",
    ),
    Mutation(
        "a model may name other files",
        "downlink/bundle.py",
        '        if name.endswith(".onnx"):',
        "        if False:",
        "tests/test_graph.py::test_a_bundle_hands_out_no_model_with_external_data",
    ),
    Mutation(
        "a server that has died stays dead",
        "decoder_node/server.py",
        "        while self._loops:",
        "        while False:",
        "tests/test_admission.py::test_a_server_that_dies_all_the_same_is_replaced",
    ),
    Mutation(
        "gRPC takes calls as it likes",
        "decoder_node/calls.py",
        "    cygrpc.AioServer = _Server if MENDED else plain",
        "    cygrpc.AioServer = plain",
        "tests/test_admission.py::test_no_path_of_a_call_ends_the_server",
    ),
    Mutation(
        "an older stream is not given up for a newer one",
        "decoder_node/admission.py",
        "            standing[0].wanted.set()",
        "            pass",
        "tests/test_admission.py::test_the_newest_stream_works_and_the_oldest_keeps_what_it_brought",
    ),
    Mutation(
        "an outbox takes scenes without end",
        "encoder_node/room.py",
        "    if bytes_max is not None and held + size > bytes_max:",
        "    if False:",
        "tests/chaos/test_full.py::test_the_operators_bound_on_the_outbox_is_kept_and_said",
    ),
)
