"""As much of tether's serial line (tether/wire/src/serial.rs) as tells whether tether is at its other end.

A guest answers a packet of an epoch that it does not know with a reset of that epoch.
"""

import os
import struct

DATA, RESET = 1, 3
HEADER = struct.Struct("<BIIIQ")


def crc32c(data):
    """CRC-32C (RFC 3720, appendix B.4), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def encode(packet):
    """COBS, with the 0 that ends a packet."""
    out = bytearray()
    for run in (packet + b"\0").split(b"\0")[:-1]:
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out += bytes([len(run) + 1]) + run
    return bytes(out) + b"\0"


def decode(data):
    """Back; None when it is none."""
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        if code == 0 or at + code > len(data):
            return None
        out += data[at + 1:at + code]
        at += code
        if code < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def question():
    """A packet that only tether answers, and the epoch of the answer."""
    epoch = int.from_bytes(os.urandom(4), "little")
    packet = HEADER.pack(DATA, epoch, 7, 0, 0) + b"?"
    return b"\0" + encode(packet + struct.pack("<I", crc32c(packet))), epoch


def answers(data):
    """The epochs of all resets in what a guest said."""
    found = set()
    for part in bytes(data).split(b"\0"):
        packet = decode(part) or b""
        if len(packet) < HEADER.size + 4:
            continue
        plain, crc = packet[:-4], struct.unpack("<I", packet[-4:])[0]
        kind, epoch, *_ = HEADER.unpack_from(plain)
        if kind == RESET and crc32c(plain) == crc:
            found.add(epoch)
    return found
