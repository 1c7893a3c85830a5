from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_RECEIVING: _ClassVar[State]
    STATE_DURABLE: _ClassVar[State]
    STATE_REFUSED: _ClassVar[State]

class RefusalCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_CODE_UNSPECIFIED: _ClassVar[RefusalCode]
    REFUSAL_CODE_MALFORMED: _ClassVar[RefusalCode]
    REFUSAL_CODE_CORRUPT: _ClassVar[RefusalCode]
    REFUSAL_CODE_UNSUPPORTED: _ClassVar[RefusalCode]
    REFUSAL_CODE_TOO_LARGE: _ClassVar[RefusalCode]
    REFUSAL_CODE_EXHAUSTED: _ClassVar[RefusalCode]
    REFUSAL_CODE_BUSY: _ClassVar[RefusalCode]
    REFUSAL_CODE_FORBIDDEN: _ClassVar[RefusalCode]
    REFUSAL_CODE_REFERENCE: _ClassVar[RefusalCode]

class AnswerCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_CODE_UNSPECIFIED: _ClassVar[AnswerCode]
    ANSWER_CODE_DONE: _ClassVar[AnswerCode]
    ANSWER_CODE_REFUSED: _ClassVar[AnswerCode]
    ANSWER_CODE_UNKNOWN_SCENE: _ClassVar[AnswerCode]
STATE_UNSPECIFIED: State
STATE_RECEIVING: State
STATE_DURABLE: State
STATE_REFUSED: State
REFUSAL_CODE_UNSPECIFIED: RefusalCode
REFUSAL_CODE_MALFORMED: RefusalCode
REFUSAL_CODE_CORRUPT: RefusalCode
REFUSAL_CODE_UNSUPPORTED: RefusalCode
REFUSAL_CODE_TOO_LARGE: RefusalCode
REFUSAL_CODE_EXHAUSTED: RefusalCode
REFUSAL_CODE_BUSY: RefusalCode
REFUSAL_CODE_FORBIDDEN: RefusalCode
REFUSAL_CODE_REFERENCE: RefusalCode
ANSWER_CODE_UNSPECIFIED: AnswerCode
ANSWER_CODE_DONE: AnswerCode
ANSWER_CODE_REFUSED: AnswerCode
ANSWER_CODE_UNKNOWN_SCENE: AnswerCode

class EdgeFrame(_message.Message):
    __slots__ = ("hello", "offer", "chunks", "pause", "answer", "progress", "report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    offer: Offer
    chunks: Chunks
    pause: Pause
    answer: Answer
    progress: Progress
    report: Report
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., chunks: _Optional[_Union[Chunks, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class GroundFrame(_message.Message):
    __slots__ = ("welcome", "scene_state", "ack", "resend", "ask", "bundle_part")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SCENE_STATE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_PART_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    scene_state: SceneState
    ack: Ack
    resend: Resend
    ask: Ask
    bundle_part: BundlePart
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., scene_state: _Optional[_Union[SceneState, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., resend: _Optional[_Union[Resend, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., bundle_part: _Optional[_Union[BundlePart, _Mapping]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("revision", "software")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    software: str
    def __init__(self, revision: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("revision", "software", "open_scenes_max", "reports", "references")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    OPEN_SCENES_MAX_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    software: str
    open_scenes_max: int
    reports: bool
    references: bool
    def __init__(self, revision: _Optional[int] = ..., software: _Optional[str] = ..., open_scenes_max: _Optional[int] = ..., reports: bool = ..., references: bool = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("scene_id", "manifest", "priority")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    manifest: bytes
    priority: int
    def __init__(self, scene_id: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., priority: _Optional[int] = ...) -> None: ...

class Chunks(_message.Message):
    __slots__ = ("scene_id", "chunks", "flush")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    flush: bool
    def __init__(self, scene_id: _Optional[bytes] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., flush: bool = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("index", "crc32c", "content")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    index: int
    crc32c: int
    content: bytes
    def __init__(self, index: _Optional[int] = ..., crc32c: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ("scene_id",)
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    def __init__(self, scene_id: _Optional[bytes] = ...) -> None: ...

class SceneState(_message.Message):
    __slots__ = ("scene_id", "state", "missing", "refusal", "payload_sha256")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    state: State
    missing: _containers.RepeatedCompositeFieldContainer[Range]
    refusal: Refusal
    payload_sha256: bytes
    def __init__(self, scene_id: _Optional[bytes] = ..., state: _Optional[_Union[State, str]] = ..., missing: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., payload_sha256: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "retry_after_s", "reference")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    code: RefusalCode
    message: str
    retry_after_s: int
    reference: bytes
    def __init__(self, code: _Optional[_Union[RefusalCode, str]] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[int] = ..., reference: _Optional[bytes] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("scene_id", "committed")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    committed: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, scene_id: _Optional[bytes] = ..., committed: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class Resend(_message.Message):
    __slots__ = ("scene_id", "ranges", "reason")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    reason: str
    def __init__(self, scene_id: _Optional[bytes] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., reason: _Optional[str] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("ask_id", "request", "crc32c")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    ask_id: bytes
    request: bytes
    crc32c: int
    def __init__(self, ask_id: _Optional[bytes] = ..., request: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("refine", "set_priority", "cancel", "set_target", "install", "rollback")
    REFINE_FIELD_NUMBER: _ClassVar[int]
    SET_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    SET_TARGET_FIELD_NUMBER: _ClassVar[int]
    INSTALL_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    refine: Refine
    set_priority: SetPriority
    cancel: Cancel
    set_target: SetTarget
    install: Install
    rollback: Rollback
    def __init__(self, refine: _Optional[_Union[Refine, _Mapping]] = ..., set_priority: _Optional[_Union[SetPriority, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., set_target: _Optional[_Union[SetTarget, _Mapping]] = ..., install: _Optional[_Union[Install, _Mapping]] = ..., rollback: _Optional[_Union[Rollback, _Mapping]] = ...) -> None: ...

class Refine(_message.Message):
    __slots__ = ("scene_id", "layers", "first")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    layers: int
    first: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, scene_id: _Optional[bytes] = ..., layers: _Optional[int] = ..., first: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class SetPriority(_message.Message):
    __slots__ = ("scene_id", "priority")
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    priority: int
    def __init__(self, scene_id: _Optional[bytes] = ..., priority: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("scene_id",)
    SCENE_ID_FIELD_NUMBER: _ClassVar[int]
    scene_id: bytes
    def __init__(self, scene_id: _Optional[bytes] = ...) -> None: ...

class SetTarget(_message.Message):
    __slots__ = ("quality", "bits_per_sample", "psnr_db", "stream_bytes", "max_error", "layers")
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PSNR_DB_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    quality: float
    bits_per_sample: float
    psnr_db: float
    stream_bytes: int
    max_error: int
    layers: int
    def __init__(self, quality: _Optional[float] = ..., bits_per_sample: _Optional[float] = ..., psnr_db: _Optional[float] = ..., stream_bytes: _Optional[int] = ..., max_error: _Optional[int] = ..., layers: _Optional[int] = ...) -> None: ...

class Install(_message.Message):
    __slots__ = ("bundle_id", "files", "signature")
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    bundle_id: bytes
    files: _containers.RepeatedCompositeFieldContainer[BundleFile]
    signature: bytes
    def __init__(self, bundle_id: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[BundleFile, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class BundleFile(_message.Message):
    __slots__ = ("name", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Rollback(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Answer(_message.Message):
    __slots__ = ("ask_id", "code", "message")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ask_id: bytes
    code: AnswerCode
    message: str
    def __init__(self, ask_id: _Optional[bytes] = ..., code: _Optional[_Union[AnswerCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("ask_id", "offset")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ask_id: bytes
    offset: int
    def __init__(self, ask_id: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("waiting_scenes", "waiting_bytes", "kept_scenes", "next_contact")
    WAITING_SCENES_FIELD_NUMBER: _ClassVar[int]
    WAITING_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_SCENES_FIELD_NUMBER: _ClassVar[int]
    NEXT_CONTACT_FIELD_NUMBER: _ClassVar[int]
    waiting_scenes: int
    waiting_bytes: int
    kept_scenes: int
    next_contact: int
    def __init__(self, waiting_scenes: _Optional[int] = ..., waiting_bytes: _Optional[int] = ..., kept_scenes: _Optional[int] = ..., next_contact: _Optional[int] = ...) -> None: ...

class BundlePart(_message.Message):
    __slots__ = ("ask_id", "offset", "crc32c", "content")
    ASK_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ask_id: bytes
    offset: int
    crc32c: int
    content: bytes
    def __init__(self, ask_id: _Optional[bytes] = ..., offset: _Optional[int] = ..., crc32c: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...
