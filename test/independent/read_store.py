#!/usr/bin/env python3
"""Restores a disk from a store by docs/format.md alone; shares no code with the program.

usage: read_store.py STORE [SEQUENCE TARGET OUTPUT]

Checks every checksum and every id on the way, and stops at the first that is
wrong. Without a sequence it prints the points' disks with the SHA-256 of their
bytes. Plain stores only. Needs the zstd program.
"""
import hashlib
import json
import os
import struct
import subprocess
import sys

CRC_TABLE = []
for value in range(256):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    CRC_TABLE.append(value)


def crc32c(data, seed=0):
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def check(condition, what):
    if not condition:
        sys.exit(f"damaged: {what}")


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def unzstd(data):
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout


def read(path):
    with open(path, "rb") as file:
        return file.read()


def read_store_file(root):
    raw = read(os.path.join(root, "store.json"))
    document = json.loads(raw)
    covered = raw[: raw.rindex(b',\n  "crc32c": "')]
    check(int(document["crc32c"], 16) == crc32c(covered), "store.json")
    check(document["format"] == 1 and not document["features"]["incompat"], "store.json: a newer store")
    return document


def read_packs(root, store_id):
    """Every record of every pack: id -> plain bytes."""
    records = {}
    for folder, _, names in os.walk(os.path.join(root, "packs")):
        for name in names:
            pack = read(os.path.join(folder, name))
            check(pack[:8] == b"VVPACK01" and u32(pack, 92) == crc32c(pack[:92]), f"{name}: header")
            check(pack[16:32] == store_id and pack[32:48].hex() == name[:-5], f"{name}: store or name")
            trailer = pack[-48:]
            check(trailer[:8] == b"VVPKEND1" and u32(trailer, 44) == crc32c(trailer[:44]), f"{name}: trailer")
            footer_at, count, footer_crc = struct.unpack_from("<QII", trailer, 8)
            footer = pack[footer_at : footer_at + 56 * count]
            check(crc32c(footer) == footer_crc and footer_at + 56 * count + 48 == len(pack), f"{name}: footer")
            for at in range(0, len(footer), 56):
                read_record(pack, footer[at : at + 56], records)
    return records


def read_record(pack, entry, records):
    name = entry[:32]
    at, plain_length, stored_length, number, kind, flags = struct.unpack_from("<QIIIBB", entry, 32)
    header, payload = pack[at : at + 64], pack[at + 64 : at + 64 + stored_length]
    check(header[:4] == b"VVR1" and header[24:56] == name, f"record {number}: header")
    check(header[4:6] == bytes([kind, flags]) and u32(header, 8) == number, f"record {number}: footer and header differ")
    check(u32(header, 20) == crc32c(payload, crc32c(header[24:], crc32c(header[:20]))), f"record {number}: checksum")
    plain = unzstd(payload) if flags & 1 else payload
    check(len(plain) == plain_length, f"record {number}: length")
    check(hashlib.sha256(bytes([kind]) + plain).digest() == name, f"record {number}: id")
    records[name] = plain


def unpack(data, at=0):
    """One msgpack value and the place after it."""
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code < 0x90:
        return unpack_map(data, at, code & 15)
    if code < 0xA0:
        return unpack_list(data, at, code & 15)
    if code < 0xC0:
        return data[at : at + (code & 31)].decode(), at + (code & 31)
    if code == 0xC0:
        return None, at
    if code in (0xC2, 0xC3):
        return code == 0xC3, at
    if code in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
        form = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}[code]
        length = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
        value = data[at : at + length]
        return (value if code < 0xD0 else value.decode()), at + length
    if code in (0xDC, 0xDD, 0xDE, 0xDF):
        form = ">H" if code in (0xDC, 0xDE) else ">I"
        length = struct.unpack_from(form, data, at)[0]
        return (unpack_list if code < 0xDE else unpack_map)(data, at + struct.calcsize(form), length)
    form = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}[code]
    return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)


def unpack_list(data, at, count):
    values = []
    for _ in range(count):
        value, at = unpack(data, at)
        values.append(value)
    return values, at


def unpack_map(data, at, count):
    values = {}
    for _ in range(count):
        key, at = unpack(data, at)
        values[key], at = unpack(data, at)
    return values, at


def read_points(root, store_id):
    points = []
    for folder, _, names in os.walk(os.path.join(root, "points")):
        for name in names:
            if not name.endswith(".point"):
                continue
            data = read(os.path.join(folder, name))
            check(data[:8] == b"VVPOINT1" and data[56:72] == store_id, f"{name}: header")
            check(u32(data, 20) == crc32c(data[24:], crc32c(data[:20])), f"{name}: checksum")
            plain = unzstd(data[72:])
            check(len(plain) == u32(data, 12) and len(data) - 72 == u32(data, 16), f"{name}: lengths")
            point, _ = unpack(plain)
            check(point["id"].hex() == name[:-6], f"{name}: name")
            points.append(point)
    return sorted(points, key=lambda point: (point["domain_uuid"], point["sequence"]))


def read_disk(disk, chunk_size, records):
    image = bytearray(disk["size"])
    chunks = -(-disk["size"] // chunk_size)
    depth = 1
    while 128**depth < chunks:
        depth += 1
    if disk["root_kind"] == "node":
        fill(image, chunk_size, records, (disk["root_id"], depth - 1, 0))
    return image


def fill(image, chunk_size, records, place):
    name, level, first = place
    node = records[name]
    check(node[0] == 1 and node[1] == level, "a tree node of another level")
    at = 36
    for child in range(128):
        if (node[4 + child // 4] >> (2 * (child % 4))) & 3 != 2:
            continue
        child_name = node[at : at + 32]
        at += 32
        child_first = first + child * 128**level
        if level > 0:
            fill(image, chunk_size, records, (child_name, level - 1, child_first))
            continue
        start = child_first * chunk_size
        check(len(records[child_name]) == min(chunk_size, len(image) - start), "a chunk of another length")
        image[start : start + len(records[child_name])] = records[child_name]


def main(arguments):
    root = arguments[0]
    store = read_store_file(root)
    store_id = bytes.fromhex(store["id"])
    records = read_packs(root, store_id)
    for point in read_points(root, store_id):
        for disk in point["disks"]:
            image = read_disk(disk, store["chunk_size"], records)
            if len(arguments) == 1:
                print(point["sequence"], disk["target"], hashlib.sha256(image).hexdigest())
            elif [str(point["sequence"]), disk["target"]] == arguments[1:3]:
                with open(arguments[3], "xb") as output:
                    output.write(image)


if __name__ == "__main__":
    main(sys.argv[1:])
