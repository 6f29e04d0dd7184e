"""Flips one byte of a record on an OSD's disk: damage.py BLOCK_FILE NUMBER. Records begin with their number, as 8 bytes."""

import mmap
import sys

path, number = sys.argv[1], int(sys.argv[2])
# What follows the number in a record: byte i is (i & 255) ^ (i >> 8 & 255).
start = number % 4096 * 4096
rest = bytes((at & 255) ^ (at >> 8 & 255) for at in range(start + 8, start + 256))
pattern = number.to_bytes(8, "little") + rest
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
    at = disk.find(pattern)
    assert at >= 0, "the record is not on this disk"
    disk[at + 100] ^= 1
    disk.flush()
print(f"byte {at + 100} of {path} flipped")
