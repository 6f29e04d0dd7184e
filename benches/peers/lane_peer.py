"""A transfer engine's reads between two processes, measured as `lane` (benches/src/bin/lane) measures ours.

    lane_peer.py run mooncake|nixl FOLDER REQUEST_BYTES REQUESTS DEPTH

FOLDER holds one `.bin` file, which a second process of this program has in registered memory. This one reads DEPTH ranges
at a time into registered slots, round and round, and prints JSON. One pass over everything goes before and is not counted.
Both engines use TCP: no encryption, no checksum.
"""

import base64
import json
import mmap
import os
import pathlib
import subprocess
import sys
import time

import numpy

# Between two looks at NIXL's transfers, when none was done.
PAUSE_S = 500e-6


def main():
    verb, engine, folder = sys.argv[1:4]
    os.environ.update(UCX_TLS="tcp", MC_FORCE_TCP="1")
    sides = {"mooncake": Mooncake, "nixl": Nixl}
    data = pathlib.Path(next(pathlib.Path(folder).glob("*.bin"))).read_bytes()
    if verb == "serve":
        return serve(sides[engine], data)
    request, requests, depth = map(int, sys.argv[4:7])
    command = [sys.executable, __file__, "serve", engine, folder]
    # Engines print to standard output; what is ours is marked.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        told = json.loads(hear(server.stdout))
        depth *= sides[engine].BATCHES
        slots = Memory(request * depth)
        client = sides[engine](slots)
        client.connect(told, request, len(data), depth)
        client.read(len(data) // request)

        def server_cpu():
            server.stdin.write("cpu\n")
            server.stdin.flush()
            return float(hear(server.stdout))

        before, cpu, begun = server_cpu(), time.process_time(), time.monotonic()
        client.read(requests)
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
        served = server_cpu() - before
        # The last that came is in the slot of its number.
        number = requests - 1
        start, slot = number * request % len(data), number % depth * request
        if slots.view[slot : slot + request].tobytes() != data[start : start + request]:
            sys.exit("other bytes came than were served")
        gigabytes = request * requests / 1e9
        say(json.dumps({
            "gb": gigabytes,
            "seconds": seconds,
            "gb_per_s": gigabytes / seconds,
            "client_cpu_s_per_gb": cpu / gigabytes,
            "server_cpu_s_per_gb": served / gigabytes,
            "cpu_s_per_gb": (cpu + served) / gigabytes,
        }))
        server.stdin.close()
    # Engines take seconds to end, or do not.
    os._exit(0)


def serve(side, data):
    memory = Memory(len(data))
    memory.view[:] = numpy.frombuffer(data, dtype=numpy.uint8)
    engine = side(memory)
    say(json.dumps(engine.tell()))
    for _ in sys.stdin:
        say(time.process_time())
    os._exit(0)


MARK = "lane: "


def say(text):
    print(f"\n{MARK}{text}", flush=True)


def hear(stream):
    for line in stream:
        if line.startswith(MARK):
            return line[len(MARK) :]
    sys.exit("the serving process ended")


class Memory:
    """Pages of this process, and where they lie."""

    def __init__(self, size):
        self.view = numpy.frombuffer(mmap.mmap(-1, size), dtype=numpy.uint8)
        self.address, self.size = self.view.ctypes.data, size


class Mooncake:
    """One batch of reads after the other, since its Python call waits for all of one: of some times DEPTH, so that the ends
    of batches weigh less.
    """

    BATCHES = 4

    def __init__(self, memory):
        from mooncake.engine import TransferEngine

        self.memory, self.engine = memory, TransferEngine()
        check(self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "initialize")
        check(self.engine.register_memory(memory.address, memory.size) == 0, "register_memory")

    def tell(self):
        return {"host": f"127.0.0.1:{self.engine.get_rpc_port()}", "address": self.memory.address}

    def connect(self, told, request, data, depth):
        self.told, self.request, self.data, self.depth = told, request, data, depth

    def read(self, requests):
        for first in range(0, requests, self.depth):
            numbers = range(first, min(first + self.depth, requests))
            slots = [self.memory.address + number % self.depth * self.request for number in numbers]
            sources = [self.told["address"] + number * self.request % self.data for number in numbers]
            lengths = [self.request] * len(numbers)
            check(self.engine.batch_transfer_sync_read(self.told["host"], slots, sources, lengths) == 0, "read")


class Nixl:
    """DEPTH transfers under way; each that is done makes room for the next.

    The asking agent has no thread for progress: looking at its transfers drives them, at twice the speed and half the CPU.
    """

    BATCHES = 1

    def __init__(self, memory):
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        config = nixl_agent_config(enable_prog_thread=sys.argv[1] == "serve", backends=["UCX"])
        self.agent = nixl_agent(f"agent-{os.getpid()}", config)
        self.memory = memory
        check(self.agent.register_memory([(memory.address, memory.size, 0, "")], "DRAM"), "register_memory")

    def tell(self):
        return {"metadata": base64.b64encode(self.agent.get_agent_metadata()).decode(), "address": self.memory.address}

    def connect(self, told, request, data, depth):
        peer = self.agent.add_remote_agent(base64.b64decode(told["metadata"]))
        peer = peer.decode() if isinstance(peer, bytes) else peer
        cut = lambda base, size: [(base + at, request, 0) for at in range(0, size, request)]
        local = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", cut(self.memory.address, request * depth), "DRAM")
        remote = self.agent.prep_xfer_dlist(peer, cut(told["address"], data), "DRAM")
        pieces = data // request
        self.depth = depth
        self.make = lambda number: self.agent.make_prepped_xfer(
            "READ", local, [number % depth], remote, [number % pieces]
        )

    def read(self, requests):
        running = {}
        started = 0
        while started < requests or running:
            while started < requests and started % self.depth not in running:
                handle = self.make(started)
                check(self.agent.transfer(handle) != "ERR", "transfer")
                running[started % self.depth] = handle
                started += 1
            done = [slot for slot, handle in running.items() if self.is_done(handle)]
            for slot in done:
                self.agent.release_xfer_handle(running.pop(slot))
            if not done:
                time.sleep(PAUSE_S)

    def is_done(self, handle):
        state = self.agent.check_xfer_state(handle)
        check(state != "ERR", "check_xfer_state")
        return state == "DONE"


def check(well, what):
    if not well:
        sys.exit(f"{what} failed")


if __name__ == "__main__":
    main()
