"""The rules of the link, one class per end. Both take (event, now) and return actions; neither knows a socket, a file
or a clock.

A session is one stream, from `Hello` to its end. What must outlive a stream (the edge's outbox, the ground's store)
lives with the caller, who carries out the actions in the order given and reports back:

    edge:    Send, Delivered, Kept, Paused, Refused, Asked, Close
             and, pulled by whoever paces the link, `EdgeSession.take`
    ground:  Send, Open, Commit, Finish, Reject, Look, Answered, ReadPart, Reported, Close
             answered by `opened`, `committed` or `failed`, `finished`, `found`, `part`

`now` is any monotone clock in seconds; `deadline` says when `tick` must be called at the latest.

EdgeSession ignores what it does not expect from the ground: stale, repeated and reordered frames are harmless,
because each states a fact about the ground's store. GroundSession believes nothing: a frame out of order ends the
stream, and a chunk that is not what the manifest states is thrown away before anything else happens with it.
"""

from __future__ import annotations

from downlink.session_edge import EdgeSession
from downlink.session_ground import DAMAGED_MAX, GroundSession, refused

__all__ = ["DAMAGED_MAX", "EdgeSession", "GroundSession", "refused"]
