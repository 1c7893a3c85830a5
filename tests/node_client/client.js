// Uploads a .dl file to a decoder node: node client.js PROTO_FOLDER HOST:PORT FILE.dl [--once N]
//
// A second implementation of the edge's side, in another language, written from docs/format.md (the file, and the
// dictionary, which is read from that page) and proto/downlink/v1/link.proto and docs/link.md (the link), and sharing no
// code with the first. It reads the manifest and
// the chunk list itself, checks every checksum, keeps a window, answers what the ground asks for again, and ends when the
// ground has proved that the scene is durable. With --once N it hangs up rudely after N chunks, to be resumed by another run.
// Prints one JSON object.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// Packages are where NODE_PATH says, which ES modules do not look at by themselves.
const require = createRequire((process.env.NODE_PATH ?? import.meta.dirname ?? ".") + "/");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");
const { decode } = require("@msgpack/msgpack");
const zstd = require("@bokuweb/zstd-wasm");

const WINDOW = 64;
const FRAME_BYTES = 256 * 1024;

const CRC = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0x82f63b78 : n >>> 1;
  return n >>> 0;
});

function crc32c(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function must(holds, what) {
  if (!holds) throw new Error(what);
}

// The dictionary of manifests, from the specification.
function dictionary() {
  const [, digest, base64] = readFileSync(new URL("../../docs/format.md", import.meta.url), "utf8").match(
    /## Dictionary of manifests\s+[^`]*`([0-9a-f]{64})`[^`]*```\n([^`]*)```/,
  );
  const words = Buffer.from(base64, "base64");
  must(createHash("sha256").update(words).digest("hex") === digest, "the specification's dictionary is not what it says");
  return words;
}

// The file: header, manifest, pages, chunks. Each chunk as {content, crc}.
function readStream(file) {
  must(file.subarray(0, 4).equals(Buffer.from([0x4c, 0x44, 0x4c, 0x01])), "not a .dl file");
  const length = file.readUInt32LE(4);
  const packed = file.subarray(12, 12 + length);
  must(crc32c(packed) === file.readUInt32LE(8), "the manifest is damaged");
  must(packed[0] === 2, "the manifest is of another version");
  const facts = zstd.decompressUsingDict(zstd.createDCtx(), packed.subarray(1), dictionary());
  const [, , , , , count, payloadBytes, sha256, pages] = decode(facts);
  const payload = file.subarray(12 + length);
  must(payload.length === payloadBytes, "the file is cut or too long");
  must(createHash("sha256").update(payload).digest().equals(Buffer.from(sha256)), "the payload is damaged");

  const chunks = [];
  let at = 0;
  for (const [size, crc] of pages) {
    chunks.push({ content: payload.subarray(at, at + size), crc });
    at += size;
  }
  const listed = [];
  for (const { content, crc } of chunks.slice()) {
    must(crc32c(content) === crc, "a page is damaged");
    const many = Math.min(16384, count - pages.length - listed.length);
    const sizes = [];
    let place = 0;
    while (sizes.length < many) {
      let size = 0;
      for (let shift = 0; ; shift += 7) {
        const byte = content[place++];
        size |= (byte & 0x7f) << shift;
        if (byte < 0x80) break;
      }
      sizes.push(size);
    }
    for (const size of sizes) {
      listed.push({ size, crc: size ? content.readUInt32LE(place) : 0 });
      place += size ? 4 : 0;
    }
    must(place === content.length, "a page does not end where it must");
  }
  for (const { size, crc } of listed) {
    const content = payload.subarray(at, at + size);
    must(size === 0 || crc32c(content) === crc, "a chunk is damaged");
    chunks.push({ content, crc });
    at += size;
  }
  must(at === payload.length && chunks.length === count, "the lengths do not add up");
  return { packed, chunks, sha256: Buffer.from(sha256), id: createHash("sha256").update(packed).digest() };
}

function members(ranges) {
  return ranges.flatMap(({ first, count }) => Array.from({ length: count }, (_, n) => first + n));
}

function upload(service, stream, once) {
  return new Promise((resolve, reject) => {
    const call = service.Deliver();
    const facts = { sent: 0, acknowledged: 0, resent: 0 };
    let todo = [];
    const flying = new Set();

    const send = () => {
      let room = FRAME_BYTES;
      const parts = [];
      while (todo.length && flying.size < WINDOW && (parts.length === 0 || room >= stream.chunks[todo[0]].content.length)) {
        const index = todo.shift();
        const { content, crc } = stream.chunks[index];
        room -= content.length;
        flying.add(index);
        parts.push({ index, crc32c: crc, content });
      }
      if (!parts.length) return;
      facts.sent += parts.length;
      const flush = !todo.length || flying.size >= WINDOW / 2;
      call.write({ chunks: { sceneId: stream.id, chunks: parts, flush } }, () => {
        if (once && facts.sent >= once) {
          call.cancel();
          resolve({ ...facts, state: "CUT" });
        }
      });
      if (!once || facts.sent < once) send();
    };

    call.on("data", (frame) => {
      if (frame.sceneState) {
        const { state, missing, refusal, payloadSha256 } = frame.sceneState;
        if (state === "STATE_RECEIVING") {
          // All that was flying is stated again if it is missing.
          flying.clear();
          todo = members(missing).filter((index) => stream.chunks[index].content.length);
          facts.missing ??= todo.length;
          send();
        } else if (state === "STATE_DURABLE") {
          must(Buffer.from(payloadSha256).equals(stream.sha256), "durable, but with another hash");
          facts.state = "DURABLE";
          call.end();
        } else {
          reject(new Error(`refused: ${refusal.code} ${refusal.message}`));
        }
      } else if (frame.ack) {
        for (const index of members(frame.ack.committed)) facts.acknowledged += flying.delete(index) ? 1 : 0;
        send();
      } else if (frame.resend) {
        const again = members(frame.resend.ranges).filter((index) => flying.delete(index));
        facts.resent += again.length;
        todo = [...new Set([...again, ...todo])].sort((a, b) => a - b);
        send();
      }
    });
    call.on("error", (error) => (facts.state === "CUT" ? undefined : reject(error)));
    call.on("end", () => resolve(facts));

    call.write({ hello: { revision: 1, software: "node client of the tests" } });
    call.write({ offer: { sceneId: stream.id, manifest: stream.packed, priority: 0 } });
  });
}

const [folder, address, path, option, number] = process.argv.slice(2);
const definition = loadSync("downlink/v1/link.proto", { includeDirs: [folder], enums: String, defaults: true, oneofs: true });
const { LinkService } = grpc.loadPackageDefinition(definition).downlink.v1;
const service = new LinkService(address, grpc.credentials.createInsecure());
await zstd.init();
const stream = readStream(readFileSync(path));
try {
  const facts = await upload(service, stream, option === "--once" ? Number(number) : 0);
  console.log(JSON.stringify({ ...facts, sceneId: stream.id.toString("hex"), chunks: stream.chunks.length }));
} catch (error) {
  console.error(String(error.message ?? error));
  process.exitCode = 1;
} finally {
  service.close();
}
