"""Two gloo ranks; rank 1 kills itself in the first generation, after the world has met."""

import os
import signal

import torch
import torch.distributed as dist

dist.init_process_group(backend="gloo", init_method="env://")
dist.barrier()
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and dist.get_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
tensor = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(tensor)
if dist.get_rank() == 0:
    print(f"sum after the restart: {tensor.item()}", flush=True)
dist.destroy_process_group()
