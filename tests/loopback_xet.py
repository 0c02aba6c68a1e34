"""Content-addressed storage as hf_xet speaks to it: files are terms, ranges of chunks of xorbs.

Source: the Xet protocol specification 1.1 (huggingface.co/docs/xet): CAS API, shard and xorb formats; LZ4's
frame and block formats.
"""

import hashlib
import struct
from dataclasses import dataclass, field
from itertools import accumulate

ENTRY = 48  # bytes of each record of a shard
VERIFIED, EXTENDED = 1 << 31, 1 << 30
NONE, LZ4, GROUPED = 0, 1, 2


@dataclass(frozen=True)
class Term:
    xorb: str
    size: int
    first: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """``at`` and ``end``: its bytes in the xorb, header included."""

    at: int
    end: int
    kind: int
    size: int


def spelled(digest: bytes) -> str:
    """A hash in paths: four numbers of 64 bits, little endian."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


@dataclass
class Store:
    """``xorbs``: hash -> bytes; ``files``: hash -> terms; ``hashes``: sha256 -> hash of a file."""

    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, list[Term]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def add_shard(self, shard: bytes) -> dict[str, bytes]:
        """Its files, sha256 -> content. Errors: ValueError where a xorb is missing, or a sha256 is not that
        of what the terms give."""
        found, at = {}, ENTRY  # after the header
        while (record := shard[at : at + ENTRY])[:32] != b"\xff" * 32:
            name = spelled(record[:32])
            flags, count = struct.unpack("<II", record[32:40])
            at += ENTRY
            terms = []
            for number in range(count):
                term = shard[at + number * ENTRY : at + (number + 1) * ENTRY]
                _, size, first, end = struct.unpack("<4I", term[32:])
                terms.append(Term(spelled(term[:32]), size, first, end))
            at += ENTRY * count * (2 if flags & VERIFIED else 1)
            if not flags & EXTENDED:
                raise ValueError(f"{name}: no sha256")
            sha256 = spelled(shard[at : at + 32])
            at += ENTRY
            content = b"".join(self._content(term) for term in terms)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"{name}: its sha256 is another than {sha256}")
            self.files[name], self.hashes[sha256] = terms, name
            found[sha256] = content
        return found

    def _content(self, term: Term) -> bytes:
        if term.xorb not in self.xorbs:
            raise ValueError(f"{term.xorb}: no such xorb")
        xorb = self.xorbs[term.xorb]
        content = b"".join(unpacked(xorb, chunk) for chunk in chunks(xorb)[term.first : term.end])
        if len(content) != term.size:
            raise ValueError(f"{term.xorb}: {len(content)} bytes instead of {term.size}")
        return content

    def reconstruction(self, name: str, asked: tuple[int, int] | None, url: str) -> dict[str, object] | None:
        """Of the bytes ``asked``, both included; None where the file has no such bytes. ``url``: before a
        xorb's hash."""
        terms = self.files[name]
        ends = list(accumulate(term.size for term in terms))
        begin, last = asked or (0, ends[-1] - 1)
        if begin >= ends[-1]:
            return None
        kept = [(t, e) for t, e in zip(terms, ends, strict=True) if e > begin and e - t.size <= last]
        fetch: dict[str, list[dict[str, object]]] = {}
        for term, _ in kept:
            parts = chunks(self.xorbs[term.xorb])[term.first : term.end]
            where = {"start": parts[0].at, "end": parts[-1].end - 1}
            chunk_range = {"start": term.first, "end": term.end}
            fetch.setdefault(term.xorb, []).append(
                {"range": chunk_range, "url": f"{url}{term.xorb}", "url_range": where}
            )
        listed = [
            {"hash": t.xorb, "unpacked_length": t.size, "range": {"start": t.first, "end": t.end}}
            for t, _ in kept
        ]
        offset = begin - (kept[0][1] - kept[0][0].size)
        return {"offset_into_first_range": offset, "terms": listed, "fetch_info": fetch}


def chunks(xorb: bytes) -> list[Chunk]:
    """Those before the footer, which begins with its name."""
    found, at = [], 0
    while at + 8 <= len(xorb) and not xorb.startswith(b"XETBLOB", at):
        packed, size = (int.from_bytes(xorb[at + k : at + k + 3], "little") for k in (1, 5))
        found.append(Chunk(at, at + 8 + packed, xorb[at + 4], size))
        at += 8 + packed
    return found


def unpacked(xorb: bytes, chunk: Chunk) -> bytes:
    data = xorb[chunk.at + 8 : chunk.end]
    if chunk.kind == NONE:
        return data
    data = lz4_frame(data)
    if chunk.kind == LZ4:
        return data
    assert chunk.kind == GROUPED
    out, at = bytearray(len(data)), 0
    for group in range(4):  # every fourth byte from this one
        count = len(range(group, len(data), 4))
        out[group::4] = data[at : at + count]
        at += count
    return bytes(out)


def lz4_frame(data: bytes) -> bytes:
    magic, flags = struct.unpack("<IB", data[:5])
    assert magic == 0x184D2204
    at, out = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0), bytearray()
    while (size := int.from_bytes(data[at : at + 4], "little")) != 0:
        block = data[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
        if size >> 31:
            out += block
        else:
            _lz4_block(block, out)
        at += 4 + len(block) + (4 if flags & 16 else 0)
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    at = 0

    def length(number: int) -> int:
        nonlocal at
        if number == 15:
            while True:
                number += block[at]
                at += 1
                if block[at - 1] != 255:
                    break
        return number

    while at < len(block):
        token = block[at]
        at += 1
        literals = length(token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        back = int.from_bytes(block[at : at + 2], "little")
        at += 2
        count = 4 + length(token & 15)
        begin = len(out) - back
        part = out[begin : begin + count]
        out += (part * (count // max(1, len(part)) + 1))[:count]
