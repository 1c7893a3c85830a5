"""`python -m tests.chaos.flood HOST:PORT`: a peer that only wants to keep the ground busy, until it is killed.

It has a scene accepted and sends its first page a thousand times in each message, as fast as the ground reads; beside
that it opens streams in a loop and offers scenes that are none.
"""

from __future__ import annotations

import sys
import threading

import grpc

from downlink.checksum import crc32c
from downlink.frame import FRAME_CHUNKS_MAX
from downlink.wire import link_pb2 as pb
from tests import hostile
from tests.streams import stream


def repeat(address: str) -> None:
    made = stream(77, name="flood")
    page = pb.Chunk(index=0, crc32c=crc32c(made.chunks[0]), content=made.chunks[0])
    most = min(FRAME_CHUNKS_MAX, 500_000 // len(made.chunks[0]))
    many = pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes.fromhex(made.id), chunks=[page] * most, flush=True))
    first = [hostile.HELLO.SerializeToString(), hostile.offer(made.packed).SerializeToString()]
    content = many.SerializeToString()
    with grpc.insecure_channel(address) as channel:
        deliver = channel.stream_stream("/downlink.v1.LinkService/Deliver")
        while True:
            try:
                for _ in deliver(iter([*first, *[content] * 1000])):
                    pass
            except grpc.RpcError:
                continue


def knock(address: str) -> None:
    offers = [hostile.offer(manifest).SerializeToString() for _, manifest in hostile.manifests()]
    with grpc.insecure_channel(address) as channel:
        deliver = channel.stream_stream("/downlink.v1.LinkService/Deliver")
        while True:
            try:
                for _ in deliver(iter([hostile.HELLO.SerializeToString(), *offers])):
                    pass
            except grpc.RpcError:
                continue


if __name__ == "__main__":
    for work in (repeat, knock):
        threading.Thread(target=work, args=(sys.argv[1],), daemon=True).start()
    threading.Event().wait()
