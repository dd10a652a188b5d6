#!/usr/bin/env python3
"""Reads a store as docs/format.md describes it, and shares no code with virtvault.

    read_store.py list STORE
    read_store.py restore STORE POINT DISK FILE [BELOW]
                                                     a disk, raw and sparse; BELOW: a
                                                     raw copy of the image left out
    read_store.py file STORE POINT NAME FILE         domain XML, NVRAM and so on

POINT is the beginning of a point's id. The passphrase of an encrypted store, or
a key that was exported, comes from the environment: VIRTVAULT_PASSPHRASE.
Needs Python 3.8, libzstd and OpenSSL's libcrypto. Writes nothing but FILE.
"""

import ctypes
import ctypes.util
import hashlib
import hmac
import json
import os
import re
import struct
import sys
import unicodedata

FANOUT = 128
CHUNK, NODE, BLOB = 1, 2, 3
ZSTD, ENCRYPTED = 1, 2
# The state of a chunk that is as the images left out.
BELOW = 3


class Damaged(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Damaged(what)


# CRC32C, RFC 3720


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def crc32c(*parts):
    crc = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


# libzstd and libcrypto


def _library(name):
    path = ctypes.util.find_library(name)
    if path is None:
        sys.exit(f"lib{name} is not installed")
    return ctypes.CDLL(path)


_zstd = _library("zstd")
_zstd.ZSTD_decompress.restype = ctypes.c_size_t
_zstd.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
_zstd.ZSTD_isError.restype = ctypes.c_uint
_zstd.ZSTD_isError.argtypes = [ctypes.c_size_t]


def unzstd(frame, plain_length):
    out = ctypes.create_string_buffer(max(plain_length, 1))
    got = _zstd.ZSTD_decompress(out, plain_length, frame, len(frame))
    need(not _zstd.ZSTD_isError(got) and got == plain_length, "it does not decompress")
    return out.raw[:plain_length]


_crypto = None


def _load_crypto():
    global _crypto
    if _crypto is None:
        _crypto = _library("crypto")
        for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
            getattr(_crypto, name).restype = ctypes.c_void_p
        _crypto.EVP_CIPHER_CTX_free.argtypes = [ctypes.c_void_p]
        _crypto.EVP_DecryptInit_ex.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_char_p] * 2
        _crypto.EVP_DecryptUpdate.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_int),
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        _crypto.EVP_DecryptFinal_ex.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
        _crypto.EVP_CIPHER_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    return _crypto


def open_gcm(key, nonce, additional, sealed):
    """AES-256-GCM with a 12 byte nonce; the tag is the last 16 bytes of `sealed`."""
    need(len(sealed) >= 16, "no room for a tag")
    body, tag = sealed[:-16], sealed[-16:]
    crypto = _load_crypto()
    context = crypto.EVP_CIPHER_CTX_new()
    try:
        length = ctypes.c_int(0)
        out = ctypes.create_string_buffer(len(body) + 16)
        set_tag = 0x11
        fine = (
            crypto.EVP_DecryptInit_ex(context, crypto.EVP_aes_256_gcm(), None, key, nonce) == 1
            and crypto.EVP_DecryptUpdate(context, None, ctypes.byref(length), additional, len(additional)) == 1
            and crypto.EVP_DecryptUpdate(context, out, ctypes.byref(length), body, len(body)) == 1
            and crypto.EVP_CIPHER_CTX_ctrl(context, set_tag, 16, ctypes.create_string_buffer(tag, 16)) == 1
        )
        need(fine, "libcrypto failed")
        last = ctypes.create_string_buffer(16)
        need(crypto.EVP_DecryptFinal_ex(context, last, ctypes.byref(length)) == 1, "its authentication tag is wrong")
        return out.raw[: len(body)]
    finally:
        crypto.EVP_CIPHER_CTX_free(context)


def hkdf(key, salt, info):
    """RFC 5869 with SHA-256, 32 bytes: one block."""
    extracted = hmac.new(salt, key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


# msgpack, the part of it that maps of texts, numbers, flags, bytes and lists need


def unpack(data):
    value, end = _unpack(data, 0)
    need(end == len(data), "bytes after the msgpack value")
    return value


def _unpack(data, at):
    kind = data[at]
    at += 1
    if kind <= 0x7F:
        return kind, at
    if kind <= 0x8F:
        return _unpack_map(data, at, kind & 15)
    if kind <= 0x9F:
        return _unpack_list(data, at, kind & 15)
    if kind <= 0xBF:
        return _take_text(data, at, kind & 31)
    if kind >= 0xE0:
        return kind - 256, at
    simple = {0xC0: None, 0xC2: False, 0xC3: True}
    if kind in simple:
        return simple[kind], at
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    numbers.update({0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"})
    if kind in numbers:
        (value,) = struct.unpack_from(numbers[kind], data, at)
        at += struct.calcsize(numbers[kind])
        # Counts above 32 bits may come as doubles.
        return (int(value) if isinstance(value, float) and value.is_integer() else value), at
    lengths = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
    need(kind in lengths, f"msgpack type {kind:#x} has no place here")
    length = int.from_bytes(data[at : at + lengths[kind]], "big")
    at += lengths[kind]
    if kind <= 0xC6:
        need(length <= len(data) - at, "torn msgpack")
        return data[at : at + length], at + length
    if kind <= 0xDB:
        return _take_text(data, at, length)
    return _unpack_list(data, at, length) if kind <= 0xDD else _unpack_map(data, at, length)


def _take_text(data, at, length):
    need(length <= len(data) - at, "torn msgpack")
    return data[at : at + length].decode("utf-8"), at + length


def _unpack_list(data, at, count):
    values = []
    for _ in range(count):
        value, at = _unpack(data, at)
        values.append(value)
    return values, at


def _unpack_map(data, at, count):
    values = {}
    for _ in range(count):
        key, at = _unpack(data, at)
        values[key], at = _unpack(data, at)
    return values, at


# store.json, key slots


def read_store_json(store):
    with open(os.path.join(store, "store.json"), "rb") as file:
        text = file.read()
    head, comma, tail = text.rpartition(b",\n")
    need(comma and re.fullmatch(rb'  "crc32c": "[0-9a-f]{8}"\n}\n', tail), "store.json does not end in a checksum")
    need(int(tail[13:21], 16) == crc32c(head), "store.json has a wrong checksum")
    facts = json.loads(head + b"\n}")
    need(facts["format"] == 1, "store.json has another format")
    need(set(facts["features"]["incompat"]) <= {"encryption"}, "store.json has features that I do not know")
    return facts


class Keys:
    def __init__(self, master, store_id):
        self.store_id = store_id
        self.ids = hkdf(master, store_id, b"virtvault v1 id")
        self.data = hkdf(master, store_id, b"virtvault v1 data")
        self.point = hkdf(master, store_id, b"virtvault v1 point")

    def of_pack(self, salt, pack_id):
        return hkdf(self.data, salt, b"virtvault v1 pack" + self.store_id + pack_id)

    def of_file(self, salt):
        return hkdf(self.point, salt, b"virtvault v1 file" + self.store_id)


def key_check(master, facts):
    lists = (",".join(facts["features"][name]) for name in ("compat", "readonly_compat", "incompat"))
    level = facts["compression"]["level"]
    middle = f"{facts['chunk_size']} {facts['hash']} zstd {level} {facts['created_ms']}"
    lines = ["virtvault store v1", facts["id"], middle, *lists]
    key = hkdf(master, bytes.fromhex(facts["id"]), b"virtvault v1 check")
    return hmac.new(key, "".join(line + "\n" for line in lines).encode(), hashlib.sha256).digest()


def open_slot(slot, store_id, passphrase):
    """The master key, or None where the passphrase is another's."""
    need(len(slot) == 252 and slot[:8] == b"VVKSLOT1", "it is no key slot")
    need(crc32c(slot[:248]) == struct.unpack_from("<I", slot, 248)[0], "a key slot has a wrong checksum")
    need(struct.unpack_from("<HBB", slot, 8) == (1, 1, 0), "a key slot has another version")
    need(slot[24:40] == store_id, "a key slot is another store's")
    n, r, p = struct.unpack_from("<III", slot, 12)
    sane = 2**14 <= n <= 2**20 and n & (n - 1) == 0 and 8 <= r <= 32 and 1 <= p <= 16
    need(sane and 128 * r * (n + p + 2) <= 2**30, "a key slot has strange parameters")
    text = unicodedata.normalize("NFC", passphrase).encode()
    secret = hashlib.scrypt(text, salt=slot[56:88], n=n, r=r, p=p, maxmem=2**31 - 1, dklen=64)
    commitment = hmac.new(secret[32:], b"virtvault key slot v1" + slot[:168], hashlib.sha256).digest()
    if not hmac.compare_digest(commitment, slot[168:200]):
        return None
    return open_gcm(secret[:32], bytes(12), slot[:200], slot[200:248])


def decode_exported_key(text):
    letters = re.sub(r"[\s-]", "", text).upper()
    need(letters.startswith("VVKEY1"), "no exported key")
    letters = letters[6:].replace("O", "0").replace("I", "1").replace("L", "1")
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    need(len(letters) == 64 and all(letter in alphabet for letter in letters), "the exported key is mistyped")
    number = 0
    for letter in letters:
        number = number * 32 + alphabet.index(letter)
    data = number.to_bytes(40, "big")
    check = hashlib.sha256(b"virtvault exported key v1" + data[:36]).digest()[:4]
    need(check == data[36:], "the exported key is mistyped")
    return data[4:36]


def unlock(store, facts):
    if "encryption" not in facts:
        return None
    need(facts["hash"] == "hmac-sha256" and facts["encryption"]["algorithm"] == "aes-256-gcm", "unknown encryption")
    passphrase = os.environ.get("VIRTVAULT_PASSPHRASE")
    need(passphrase, "the store is encrypted: set VIRTVAULT_PASSPHRASE")
    store_id = bytes.fromhex(facts["id"])
    master = find_master(store, store_id, passphrase)
    need(master is not None, "the passphrase is wrong")
    check = bytes.fromhex(facts["encryption"]["check"])
    need(hmac.compare_digest(key_check(master, facts), check), "the key is another store's, or store.json was changed")
    return Keys(master, store_id)


def find_master(store, store_id, passphrase):
    if re.sub(r"[\s-]", "", passphrase).upper().startswith("VVKEY1"):
        return decode_exported_key(passphrase)
    folder = os.path.join(store, "keys")
    for name in sorted(os.listdir(folder)):
        if not re.fullmatch(r"[0-9a-f]{32}\.slot", name):
            continue
        with open(os.path.join(folder, name), "rb") as file:
            slot = file.read()
        try:
            need(slot[40:56].hex() == name[:32], "a key slot has another's name")
            master = open_slot(slot, store_id, passphrase)
        except Damaged as error:
            print(f"keys/{name}: {error}", file=sys.stderr)
            continue
        if master is not None:
            return master
    return None


# Packs


class Place:
    def __init__(self, path, pack_id, salt, entry):
        self.path, self.pack_id, self.salt = path, pack_id, salt
        self.id = entry[:32]
        self.offset, self.plain, self.stored, self.number = struct.unpack_from("<QIII", entry, 32)
        self.kind, self.flags = entry[52], entry[53]


class Store:
    def __init__(self, path):
        self.path = path
        self.facts = read_store_json(path)
        self.id = bytes.fromhex(self.facts["id"])
        self.chunk_size = self.facts["chunk_size"]
        self.keys = unlock(path, self.facts)
        self._places = None

    def places(self):
        """Every record of every sealed pack, by id."""
        if self._places is None:
            self._places = {}
            for folder, _, names in sorted(os.walk(os.path.join(self.path, "packs"))):
                for name in sorted(names):
                    if not re.fullmatch(r"[0-9a-f]{32}\.pack", name):
                        continue
                    try:
                        self._read_footer(os.path.join(folder, name), bytes.fromhex(name[:32]))
                    except Damaged as error:
                        print(f"{name}: {error}", file=sys.stderr)
        return self._places

    def _read_footer(self, path, pack_id):
        with open(path, "rb") as file:
            pack = file.read()
        need(len(pack) >= 96 + 48, "it is too short")
        header, trailer = pack[:96], pack[-48:]
        need(header[:8] == b"VVPACK01" and crc32c(header[:92]) == int.from_bytes(header[92:], "little"), "its header")
        need(struct.unpack_from("<HBBI", header, 8)[0::3] == (1, 96), "it has another version")
        need(header[16:32] == self.id and header[32:48] == pack_id, "it belongs elsewhere")
        need((header[11] == 1) == (self.keys is not None), "it is encrypted, or should be")
        need(trailer[:8] == b"VVPKEND1" and crc32c(trailer[:44]) == int.from_bytes(trailer[44:], "little"), "unsealed")
        footer_at, count, footer_crc = struct.unpack_from("<QII", trailer, 8)
        need(trailer[24:40] == pack_id and footer_at + 56 * count == len(pack) - 48, "its trailer")
        footer = pack[footer_at:-48]
        need(crc32c(footer) == footer_crc, "its footer")
        for at in range(0, len(footer), 56):
            place = Place(path, pack_id, header[48:80], footer[at : at + 56])
            self._places.setdefault((place.kind, place.id), []).append(place)

    def record(self, kind, wanted):
        """The plain bytes that an id names, from any of its copies."""
        error = Damaged("it is in no pack")
        for place in self.places().get((kind, wanted), []):
            try:
                return self._read_record(place)
            except Damaged as this:
                error = this
        raise Damaged(f"{wanted.hex()}: {error}")

    def _read_record(self, place):
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            record = file.read(64 + place.stored)
        need(len(record) == 64 + place.stored and record[:4] == b"VVR1", "no record")
        kind, flags, length, number, plain, stored, crc = struct.unpack_from("<BBHIIII", record, 4)
        need((kind, flags, length, number) == (place.kind, place.flags, 64, place.number), "another record")
        need((plain, stored, record[24:56]) == (place.plain, place.stored, place.id), "another record")
        need(crc == crc32c(record[:20], record[24:]), "wrong checksum")
        payload = record[64:]
        if self.keys is not None:
            need(flags & ENCRYPTED, "it is not encrypted")
            nonce = bytes(4) + struct.pack("<Q", number)
            additional = self.id + place.pack_id + record[:16] + record[24:56]
            payload = open_gcm(self.keys.of_pack(place.salt, place.pack_id), nonce, additional, payload)
        if flags & ZSTD:
            payload = unzstd(payload, plain)
        need(len(payload) == plain, "another length")
        need(self.name(kind, payload) == place.id, "it is not what its id names")
        return payload

    def name(self, kind, plain):
        if self.keys is None:
            return hashlib.sha256(bytes([kind]) + plain).digest()
        return hmac.new(self.keys.ids, bytes([kind]) + plain, hashlib.sha256).digest()

    # Points and notes

    def envelope(self, magic, data):
        need(len(data) > 72 and data[:8] == magic, "it is no such file")
        version, flags, plain, length, crc = struct.unpack_from("<HHIII", data, 8)
        need(version in (1, 2) and length == len(data) - 72, "another version or length")
        need(crc == crc32c(data[:20], data[24:]), "wrong checksum")
        need(data[56:72] == self.id, "it belongs to another store")
        payload = data[72:]
        need(bool(flags & ENCRYPTED) == (self.keys is not None), "it is encrypted, or should be")
        if self.keys is not None:
            header = data[:20] + bytes(4) + data[24:72]
            payload = open_gcm(self.keys.of_file(data[24:56]), bytes(12), header, payload)
        return unpack(unzstd(payload, plain) if flags & ZSTD else payload)

    def points(self):
        """Every point, with its notes, oldest first."""
        found = []
        root = os.path.join(self.path, "points")
        for uuid in sorted(os.listdir(root)):
            for name in sorted(os.listdir(os.path.join(root, uuid))):
                if not re.fullmatch(r"[0-9a-f]{32}\.point", name):
                    continue
                path = os.path.join(root, uuid, name)
                with open(path, "rb") as file:
                    point = self.envelope(b"VVPOINT1", file.read())
                here = (point["domain_uuid"], point["id"].hex(), point["store_id"])
                need(here == (uuid, name[:32], self.id), f"{name} is another point's")
                found.append((point, self._notes(path[: -len("point")] + "notes", point)))
        return sorted(found, key=lambda one: (one[0]["domain_uuid"], one[0]["sequence"]))

    def _notes(self, path, point):
        if not os.path.exists(path):
            return {"tags": point["tags"]}
        with open(path, "rb") as file:
            notes = self.envelope(b"VVNOTES1", file.read())
        need(notes["point_id"] == point["id"], "the notes are another point's")
        return notes

    def find_point(self, prefix):
        found = [point for point, _ in self.points() if point["id"].hex().startswith(prefix)]
        if len(found) != 1:
            sys.exit(f"{len(found)} points begin with {prefix}")
        return found[0]

    # Trees

    def chunks(self, root_id, size):
        """(index, id) of every chunk that is stored, in order."""
        count = -(-size // self.chunk_size)
        depth = 1
        while FANOUT**depth < count:
            depth += 1
        yield from self._walk(root_id, depth - 1, 0, count)

    def _walk(self, node_id, level, first, count):
        node = self.record(NODE, node_id)
        need(len(node) >= 36 and node[0] in (1, 2) and node[1:4] == bytes([level, 0, 0]), "no tree node of this level")
        span = FANOUT**level
        at = 36
        for child in range(FANOUT):
            state = node[4 + child // 4] >> (2 * (child % 4)) & 3
            if state == BELOW:
                yield from ((index, None) for index in range(first + child * span, min(first + (child + 1) * span, count)))
            if state != 2:
                continue
            child_id = node[at : at + 32]
            at += 32
            begin = first + child * span
            need(begin < count, "a child beyond the disk")
            if level == 0:
                yield begin, child_id
            else:
                yield from self._walk(child_id, level - 1, begin, count)
        need(at == len(node), "ids that no child has")

    def write_disk(self, root_id, size, path, below=None):
        with open(path, "wb") as out:
            out.truncate(size)
            if root_id is None:
                return
            for index, chunk_id in self.chunks(root_id, size) if root_id != BELOW else below_all(size, self.chunk_size):
                offset = index * self.chunk_size
                if chunk_id is None:
                    out.seek(offset)
                    out.write(below[offset : min(offset + self.chunk_size, size)])
                    continue
                chunk = self.record(CHUNK, chunk_id)
                need(len(chunk) == min(self.chunk_size, size - offset), "a chunk of another length")
                out.seek(offset)
                out.write(chunk)

    def write_file(self, blob, path):
        if blob["id"] == bytes(32):
            self.write_disk(None, blob["length"], path)
        elif blob["length"] <= 8 * 1024 * 1024:
            data = self.record(BLOB, blob["id"])
            need(len(data) == blob["length"], "a file of another length")
            with open(path, "wb") as out:
                out.write(data)
        else:
            self.write_disk(blob["id"], blob["length"], path)


# Images left out


def content_id(image):
    sum = hashlib.sha256(b"virtvault content v1\n" + struct.pack("<Q", len(image)))
    for block in range(-(-len(image) // 65536)):
        content = image[block * 65536 : (block + 1) * 65536]
        if content.count(0) != len(content):
            sum.update(struct.pack("<Q", block) + hashlib.sha256(b"\x01" + content).digest())
    return sum.digest()


def read_below(below, given):
    """The image that was left out, as a raw file, once it is proved to be that one."""
    names = ", ".join(image["path"] for image in below["images"])
    if not given:
        sys.exit(f"the disk lies on {names}: name a raw copy of that")
    with open(given[0], "rb") as file:
        image = file.read()
    if content_id(image) != below["content_id"]:
        sys.exit(f"{given[0]} does not hold what {names} held")
    return image


def below_all(size, chunk_size):
    return ((index, None) for index in range(-(-size // chunk_size)))


def main(words):
    if len(words) == 2 and words[0] == "list":
        for point, notes in Store(words[1]).points():
            disks = ",".join(f"{disk['target']}:{disk['size']}" for disk in point["disks"])
            files = ",".join(blob["name"] for blob in point["blobs"]) or "-"
            tags = ",".join(notes["tags"]) or "-"
            print(point["id"].hex(), point["domain_name"], point["sequence"], point["mode"], disks, files, tags)
        return
    if len(words) not in (5, 6) or words[0] not in ("restore", "file"):
        sys.exit(__doc__)
    store = Store(words[1])
    point = store.find_point(words[2])
    if words[0] == "restore":
        for disk in point["disks"]:
            if disk["target"] == words[3]:
                root = BELOW if disk["root_kind"] == "below" else disk.get("root_id")
                below = read_below(disk["below"], words[5:]) if "below" in disk else None
                store.write_disk(root, disk["size"], words[4], below)
                return
    else:
        for blob in point["blobs"]:
            if blob["name"] == words[3]:
                store.write_file(blob, words[4])
                return
    sys.exit(f"the point has no {words[3]}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Damaged as error:
        sys.exit(f"Error: {error}")
