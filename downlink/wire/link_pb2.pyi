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

class EdgeFrame(_message.Message):
    __slots__ = ("hello", "offer", "chunks", "pause")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    offer: Offer
    chunks: Chunks
    pause: Pause
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., chunks: _Optional[_Union[Chunks, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ...) -> None: ...

class GroundFrame(_message.Message):
    __slots__ = ("welcome", "scene_state", "ack", "resend")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SCENE_STATE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    RESEND_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    scene_state: SceneState
    ack: Ack
    resend: Resend
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., scene_state: _Optional[_Union[SceneState, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., resend: _Optional[_Union[Resend, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("revision", "software", "open_scenes_max")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    OPEN_SCENES_MAX_FIELD_NUMBER: _ClassVar[int]
    revision: int
    software: str
    open_scenes_max: int
    def __init__(self, revision: _Optional[int] = ..., software: _Optional[str] = ..., open_scenes_max: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("code", "message", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: RefusalCode
    message: str
    retry_after_s: int
    def __init__(self, code: _Optional[_Union[RefusalCode, str]] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[int] = ...) -> None: ...

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
