"""Packs the UCI handwritten digits as tar shards, byte for byte the same on every run.

The CSV comes inside the scikit-learn wheel (64 pixels of 0…16 and the digit per line):

    pip download --no-deps --only-binary :all: --dest /tmp/digits scikit-learn
    unzip -p /tmp/digits/scikit_learn-*.whl sklearn/datasets/data/digits.csv.gz > digits.csv.gz
    python3 pack.py digits.csv.gz

Writes shards/digits-train-00N.tar (1,437 images) and test/digits-test.tar (360). In a shard, image 17 is two files:
`digit-0017.img` (64 bytes, one per pixel, row by row) and `digit-0017.cls` (the digit as one character).
"""

import gzip
import hashlib
import io
import pathlib
import sys
import tarfile

CSV_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
SHARD_COUNT = 8
TEST_EVERY = 5
HERE = pathlib.Path(__file__).resolve().parent


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python3 pack.py digits.csv.gz   (see the head of this file)")
    train, test = split(read(pathlib.Path(sys.argv[1])))
    for shard in range(SHARD_COUNT):
        write(HERE / "shards" / f"digits-train-{shard:03}.tar", train[shard::SHARD_COUNT])
    write(HERE / "test" / "digits-test.tar", test)
    print(f"{len(train)} images to train in {SHARD_COUNT} shards, {len(test)} to test")


def split(images):
    """Every fifth image of each digit is for the test, so that both sets have all digits in equal parts."""
    by_digit = sorted(images, key=lambda image: (image[2], image[0]))
    test = sorted(by_digit[::TEST_EVERY])
    chosen = {number for number, _, _ in test}
    return [image for image in images if image[0] not in chosen], test


def read(path):
    """The CSV as (line number, 64 pixels as bytes, digit)."""
    compressed = path.read_bytes()
    if hashlib.sha256(compressed).hexdigest() != CSV_SHA256:
        sys.exit(f"{path} is not the file that this example was made from (SHA-256 {CSV_SHA256})")
    images = []
    for number, line in enumerate(gzip.decompress(compressed).decode().split()):
        values = [int(value) for value in line.split(",")]
        images.append((number, bytes(values[:64]), values[64]))
    return images


def write(path, images):
    """One tar: no times, owners or modes that differ between machines."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, pixels, digit in images:
            for field, payload in (("img", pixels), ("cls", str(digit).encode())):
                entry = tarfile.TarInfo(f"digit-{number:04}.{field}")
                entry.size, entry.mode, entry.mtime = len(payload), 0o644, 0
                tar.addfile(entry, io.BytesIO(payload))


if __name__ == "__main__":
    main()
