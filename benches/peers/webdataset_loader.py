"""webdataset over local tar shards with a shuffle buffer of 1,000 samples, in batches.

    webdataset_loader.py --data FOLDER --batch N
"""

import pathlib

from measure import Pass, arguments


def main():
    options = arguments(__doc__)
    import webdataset

    urls = sorted(str(path) for path in pathlib.Path(options["data"]).glob("*.tar"))
    measured = Pass()
    measured.begin()
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=1).shuffle(1000, seed=1)
    data = data.batched(int(options["batch"]), collation_fn=list)
    for samples in data:
        measured.batch([len(sample["bin"]) for sample in samples])
    measured.end()


if __name__ == "__main__":
    main()
