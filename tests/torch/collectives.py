"""Three gloo ranks: collectives, a second group, barriers; rank 0 prints what came out."""

import json

import torch
import torch.distributed as dist

dist.init_process_group(backend="gloo", init_method="env://")
rank, world = dist.get_rank(), dist.get_world_size()

tensor = torch.tensor([float(rank + 1)])
dist.all_reduce(tensor)

gathered = [None] * world
dist.all_gather_object(gathered, rank)

group = dist.new_group([0, 1])
part = torch.tensor([float(rank)])
if rank < 2:
    dist.all_reduce(part, group=group)

dist.barrier()
dist.monitored_barrier()

store = dist.distributed_c10d._get_default_store()
while hasattr(store, "underlying_store"):
    store = store.underlying_store
# A rank that serves the store itself knows its own server's port; under an agent's store no rank does.
serves = "server=<nullptr>" not in repr(store)
if rank == 0:
    result = {"sum": tensor.item(), "gathered": gathered, "group": part.item(), "serves_store": serves}
    print(json.dumps(result), flush=True)
dist.barrier()
dist.destroy_process_group()
