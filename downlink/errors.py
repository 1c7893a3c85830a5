"""The errors a user or a peer can cause. Anything else that is raised is a bug of ours.

The class says whose fault it is, `code` names it for logs, metrics and gRPC status, and the message says what is wrong,
the two values that disagree, and what to do next. Command lines print `Error: <message>` and exit with 1.
"""

from __future__ import annotations

from typing import ClassVar


class DownlinkError(Exception):
    """Any failure that is not a bug of ours."""

    code: ClassVar[str] = "error"


class StreamError(DownlinkError):
    """The bytes of a stream (manifest, chunk or file) cannot be used. Fetching them again helps only if `Corrupt`."""

    code = "stream"


class Malformed(StreamError):
    """The bytes arrived as they were written, but they were written wrongly: the writer is at fault."""

    code = "malformed"


class Corrupt(StreamError):
    """The bytes are not those that were written: a checksum, a hash or a length disagrees. Fetch them again."""

    code = "corrupt"


class Unsupported(StreamError):
    """Well-formed, but of a version or a method that this program does not know. Update the program."""

    code = "unsupported"


class TooLarge(StreamError):
    """Above a bound of `downlink.limits`."""

    code = "too_large"


class BundleError(DownlinkError):
    """A model bundle is missing, is damaged, or is not the one the stream was made with."""

    code = "bundle"


class SceneError(DownlinkError):
    """The user's input cannot be taken as a scene."""

    code = "scene"


class LinkError(DownlinkError):
    """The peer broke the rules of the link."""

    code = "link"


class ReferenceMissing(DownlinkError):
    """A scene was coded against another one that is not here."""

    code = "reference_missing"
