"""mosaicml-streaming over a local MDS folder, shuffled, read by a DataLoader.

    mosaicml_loader.py --make FOLDER --from FOLDER_OF_TARS     writes the MDS folder
    mosaicml_loader.py --data FOLDER --batch N
"""

import pathlib
import sys
import tarfile

from measure import Pass, arguments


def make(target, source):
    from streaming import MDSWriter

    with MDSWriter(out=str(target), columns={"bin": "bytes"}, size_limit=64 << 20) as writer:
        for path in sorted(pathlib.Path(source).glob("*.tar")):
            with tarfile.open(path) as tar:
                for entry in tar:
                    writer.write({"bin": tar.extractfile(entry).read()})


def read(options):
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    batch = int(options["batch"])
    measured = Pass()
    measured.begin()
    data = StreamingDataset(local=options["data"], batch_size=batch, shuffle=True, shuffle_seed=1)
    # Worker processes made it two to three times as expensive per GB, so it runs without.
    for samples in DataLoader(data, batch_size=batch, num_workers=0, collate_fn=list):
        measured.batch([len(sample["bin"]) for sample in samples])
    measured.end()


if __name__ == "__main__":
    given = arguments(__doc__)
    if "make" in given:
        make(given["make"], given["from"])
        sys.exit(0)
    read(given)
