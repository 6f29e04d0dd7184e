"""PyTorch's own TCPStore server (libuv back end), for the store's bench.

Speaks the bench's server protocol: for each line on standard input, drop the former store, open a fresh one and print
its port; end of input ends it. Only the server's side is wanted, but torch's constructor also connects one client.
"""

import sys
from datetime import timedelta

import torch.distributed as dist


def main() -> None:
    store = None
    for _ in sys.stdin:
        del store
        store = dist.TCPStore(
            "127.0.0.1",
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            use_libuv=True,
        )
        print(store.port, flush=True)


main()
