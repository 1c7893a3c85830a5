"""Frames to protobuf messages and back: with `downlink.request`, the only place that knows both.

Refuses, with `LinkError`, everything that protobuf lets through and the schema's comments forbid: ids that are not 32
bytes, empty chunks, chunks and manifests over their bounds, ranges that are empty, unordered, touching, too many or
past the largest chunk number, texts over their bound, unknown states, words that only damage can have made (durable
without a hash, refused without a reason), requests and parts of bundles without their checksums. What needs knowledge
of a scene (is that index below its chunk count?) is the sessions' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from downlink import limits
from downlink.checksum import crc32c
from downlink.errors import LinkError
from downlink.frame import (
    ASK_ID_BYTES,
    FRAME_CHUNKS_MAX,
    FRAME_CONTENT_BYTES_MAX,
    FRAME_RANGES_MAX,
    PART_BYTES_MAX,
    REASON_BYTES_MAX,
    RETRY_S_MAX,
    Ack,
    Answer,
    Ask,
    BundlePart,
    Chunk,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Hello,
    Offer,
    Pause,
    Progress,
    Refusal,
    RefusalCode,
    Report,
    Resend,
    SceneState,
    State,
    Verdict,
    Welcome,
)
from downlink.ranges import Range
from downlink.wire import link_pb2 as pb

DIGEST_BYTES = 32  # of a SHA-256; scene ids are such


def edge_message(frame: EdgeFrame) -> pb.EdgeFrame:
    """The message of a frame that the edge says."""
    match frame:
        case Hello(revision, software):
            return pb.EdgeFrame(hello=pb.Hello(revision=revision, software=software))
        case Offer(scene_id, manifest, priority):
            offer = pb.Offer(scene_id=bytes.fromhex(scene_id), manifest=manifest, priority=priority)
            return pb.EdgeFrame(offer=offer)
        case Chunks(scene_id, chunks, flush):
            parts = [pb.Chunk(index=part.index, crc32c=part.crc32c, content=part.content) for part in chunks]
            return pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes.fromhex(scene_id), chunks=parts, flush=flush))
        case Pause(scene_id):
            return pb.EdgeFrame(pause=pb.Pause(scene_id=bytes.fromhex(scene_id)))
        case Answer(ask_id, verdict, text):
            code = pb.AnswerCode.Name(verdict)
            return pb.EdgeFrame(answer=pb.Answer(ask_id=bytes.fromhex(ask_id), code=code, message=_cut(text)))
        case Progress(ask_id, offset):
            return pb.EdgeFrame(progress=pb.Progress(ask_id=bytes.fromhex(ask_id), offset=offset))
        case Report(scenes, size, kept, contact):
            report = pb.Report(waiting_scenes=scenes, waiting_bytes=size, kept_scenes=kept, next_contact=contact)
            return pb.EdgeFrame(report=report)


def ground_message(frame: GroundFrame) -> pb.GroundFrame:
    """The message of a frame that the ground says."""
    match frame:
        case Welcome(revision, software, places, reports, references):
            welcome = pb.Welcome(
                revision=revision, software=software, open_scenes_max=places, reports=reports, references=references
            )
            return pb.GroundFrame(welcome=welcome)
        case SceneState(scene_id, state, missing, refusal, payload_sha256):
            answer = None
            if refusal is not None:
                name = pb.RefusalCode.Name(refusal.code)
                answer = pb.Refusal(code=name, message=_cut(refusal.message), retry_after_s=refusal.retry_after_s)
                answer.reference = bytes.fromhex(refusal.reference)
            message = pb.SceneState(
                scene_id=bytes.fromhex(scene_id),
                state=pb.State.Name(state),
                missing=ranges_out(missing),
                refusal=answer,
                payload_sha256=payload_sha256,
            )
            return pb.GroundFrame(scene_state=message)
        case Ack(scene_id, committed):
            return pb.GroundFrame(ack=pb.Ack(scene_id=bytes.fromhex(scene_id), committed=ranges_out(committed)))
        case Resend(scene_id, ranges, reason):
            resend = pb.Resend(scene_id=bytes.fromhex(scene_id), ranges=ranges_out(ranges), reason=_cut(reason))
            return pb.GroundFrame(resend=resend)
        case Ask(ask_id, request):
            raw = bytes.fromhex(ask_id)
            return pb.GroundFrame(ask=pb.Ask(ask_id=raw, request=request, crc32c=crc32c(raw + request)))
        case BundlePart(ask_id, offset, content):
            raw = bytes.fromhex(ask_id)
            part = pb.BundlePart(ask_id=raw, offset=offset, crc32c=crc32c(content), content=content)
            return pb.GroundFrame(bundle_part=part)


def edge_frame(message: pb.EdgeFrame) -> EdgeFrame:
    """What the edge said."""
    match message.WhichOneof("frame"):
        case "hello":
            return Hello(message.hello.revision, _text(message.hello.software, limits.TEXT_BYTES_MAX, "Hello.software"))
        case "offer":
            offer = message.offer
            if not 0 < len(offer.manifest) <= limits.MANIFEST_BYTES_MAX:
                raise LinkError(
                    f"Offer.manifest has {len(offer.manifest)} bytes, 1 to {limits.MANIFEST_BYTES_MAX} are allowed"
                )
            return Offer(_scene_id(offer.scene_id, "Offer"), offer.manifest, offer.priority)
        case "chunks":
            return _chunks_in(message.chunks)
        case "pause":
            return Pause(_scene_id(message.pause.scene_id, "Pause"))
        case "answer":
            answer = message.answer
            number = int(answer.code)
            if number not in {int(known) for known in Verdict}:
                raise LinkError(f"Answer.code {number} is not known to this ground: the frame is damaged, or update it")
            text = _text(answer.message, REASON_BYTES_MAX, "Answer.message")
            return Answer(_ask_id(answer.ask_id, "Answer"), Verdict(number), text)
        case "progress":
            progress = message.progress
            if progress.offset > limits.BUNDLE_BYTES_MAX:
                raise LinkError(f"Progress.offset is {progress.offset}, a bundle has {limits.BUNDLE_BYTES_MAX} at most")
            return Progress(_ask_id(progress.ask_id, "Progress"), progress.offset)
        case "report":
            report = message.report
            if max(report.waiting_bytes, report.next_contact) >= 2**63:
                raise LinkError("Report states more than 2^63 bytes or seconds: the frame is damaged")
            return Report(report.waiting_scenes, report.waiting_bytes, report.kept_scenes, report.next_contact)
        case _:
            raise LinkError(
                "a frame with no field set: the edge speaks a later revision than it said, or the frame is damaged"
            )


def ground_frame(message: pb.GroundFrame) -> GroundFrame | None:
    """What the ground said; None for a kind of frame that this edge does not know yet."""
    match message.WhichOneof("frame"):
        case "welcome":
            welcome = message.welcome
            software = _text(welcome.software, limits.TEXT_BYTES_MAX, "Welcome.software")
            places = max(1, welcome.open_scenes_max)
            return Welcome(welcome.revision, software, places, welcome.reports, welcome.references)
        case "scene_state":
            state = message.scene_state
            scene_id = _scene_id(state.scene_id, "SceneState")
            missing = ranges_in(state.missing, "SceneState.missing")
            number = int(state.state)
            if number not in {int(known) for known in State}:
                raise LinkError(f"scene {scene_id[:12]}…: state {number} is not known to this edge; update it")
            if number == State.DURABLE and len(state.payload_sha256) != DIGEST_BYTES:
                raise LinkError(
                    f"scene {scene_id[:12]}… is called durable with a hash of {len(state.payload_sha256)} bytes, a "
                    f"SHA-256 has {DIGEST_BYTES}: the frame is damaged, or the ground is older than this edge"
                )
            refusal = _refusal_in(scene_id, state.refusal) if number == State.REFUSED else None
            return SceneState(scene_id, State(number), missing, refusal, state.payload_sha256)
        case "ack":
            ack = message.ack
            return Ack(_scene_id(ack.scene_id, "Ack"), ranges_in(ack.committed, "Ack.committed"))
        case "resend":
            resend = message.resend
            reason = _text(resend.reason, REASON_BYTES_MAX, "Resend.reason")
            return Resend(_scene_id(resend.scene_id, "Resend"), ranges_in(resend.ranges, "Resend.ranges"), reason)
        case "ask":
            return _ask_in(message.ask)
        case "bundle_part":
            return _part_in(message.bundle_part)
        case _:
            return None


def _ask_in(message: pb.Ask) -> Ask:
    ask_id = _ask_id(message.ask_id, "Ask")
    if not 0 < len(message.request) <= limits.REQUEST_BYTES_MAX:
        size = len(message.request)
        raise LinkError(f"Ask.request has {size} bytes, 1 to {limits.REQUEST_BYTES_MAX} are allowed")
    if crc32c(message.ask_id + message.request) != message.crc32c:
        raise LinkError(f"request {ask_id[:12]}… does not have its checksum: the frame is damaged")
    return Ask(ask_id, message.request)


def _part_in(message: pb.BundlePart) -> BundlePart:
    ask_id = _ask_id(message.ask_id, "BundlePart")
    if not 0 < len(message.content) <= PART_BYTES_MAX:
        size = len(message.content)
        raise LinkError(f"BundlePart.content has {size} bytes, 1 to {PART_BYTES_MAX} are allowed")
    if crc32c(message.content) != message.crc32c:
        raise LinkError(f"a part of the bundle of request {ask_id[:12]}… does not have its checksum: it is damaged")
    return BundlePart(ask_id, message.offset, message.content)


def _refusal_in(scene_id: str, message: pb.Refusal) -> Refusal:
    """A refusal. What no ground says is damage, and a code that we do not know is no last word: a scene must not be
    given up for one flipped bit."""
    number, retry_s = int(message.code), message.retry_after_s
    if number == 0 or not message.message:
        raise LinkError(f"scene {scene_id[:12]}… is refused with code {number} and no reason: the frame is damaged")
    codes = {int(code): code for code in RefusalCode}
    code = codes.get(number)
    if code is None:
        code, retry_s = RefusalCode.UNSUPPORTED, retry_s or RETRY_S_MAX
    if code in (RefusalCode.EXHAUSTED, RefusalCode.BUSY) and not retry_s:
        raise LinkError(f"scene {scene_id[:12]}… is refused as {code.name} for ever: the frame is damaged")
    if (code is RefusalCode.REFERENCE) != (len(message.reference) == 32):
        raise LinkError(f"scene {scene_id[:12]}… is refused as {code.name} with {len(message.reference)} bytes of one")
    reason = _text(message.message, REASON_BYTES_MAX, "Refusal.message")
    return Refusal(code, reason, min(retry_s, RETRY_S_MAX), message.reference.hex())


def _chunks_in(message: pb.Chunks) -> Chunks:
    scene_id = _scene_id(message.scene_id, "Chunks")
    if len(message.chunks) > FRAME_CHUNKS_MAX:
        raise LinkError(
            f"scene {scene_id[:12]}…: {len(message.chunks)} chunks in a frame, at most {FRAME_CHUNKS_MAX} are allowed"
        )
    parts = tuple(Chunk(part.index, part.crc32c, part.content) for part in message.chunks)
    if not parts:
        raise LinkError(f"scene {scene_id[:12]}…: a frame of chunks without a chunk")
    for part in parts:
        if not 0 < len(part.content) <= limits.CHUNK_BYTES_MAX:
            raise LinkError(
                f"chunk {part.index} of scene {scene_id[:12]}… has {len(part.content)} bytes, 1 to "
                f"{limits.CHUNK_BYTES_MAX} are allowed (an empty chunk is never sent)"
            )
    total = sum(len(part.content) for part in parts)
    if total > FRAME_CONTENT_BYTES_MAX:
        raise LinkError(
            f"scene {scene_id[:12]}…: {total} bytes of chunks in a frame, at most {FRAME_CONTENT_BYTES_MAX} are allowed"
        )
    return Chunks(scene_id, parts, message.flush)


def _scene_id(raw: bytes, where: str) -> str:
    if len(raw) != DIGEST_BYTES:
        raise LinkError(f"{where}.scene_id has {len(raw)} bytes, a SHA-256 has {DIGEST_BYTES}")
    return raw.hex()


def _ask_id(raw: bytes, where: str) -> str:
    if len(raw) != ASK_ID_BYTES:
        raise LinkError(f"{where}.ask_id has {len(raw)} bytes, {ASK_ID_BYTES} are a request's name")
    return raw.hex()


def _text(text: str, bytes_max: int, where: str) -> str:
    size = len(text.encode())
    if size > bytes_max:
        raise LinkError(f"{where} has {size} bytes, at most {bytes_max} are allowed")
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # it goes into logs and terminals


def _cut(text: str) -> str:
    return text.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


def ranges_out(ranges: Iterable[Range]) -> list[pb.Range]:
    """Ranges as messages."""
    return [pb.Range(first=item.first, count=item.count) for item in ranges]


def ranges_in(messages: Sequence[pb.Range], where: str) -> tuple[Range, ...]:
    """Ranges of messages, checked."""
    if len(messages) > FRAME_RANGES_MAX:
        raise LinkError(f"{where} lists {len(messages)} ranges, at most {FRAME_RANGES_MAX} are allowed")
    ranges = tuple(Range(message.first, message.count) for message in messages)
    end = -1
    for item in ranges:
        if item.count < 1 or item.first <= end or item.end > limits.CHUNKS_MAX:
            raise LinkError(
                f"{where}: the range of {item.count} from {item.first} is empty, not past the one before (its end: "
                f"{end}), or beyond the largest number of chunks, {limits.CHUNKS_MAX}"
            )
        end = item.end
    return ranges
