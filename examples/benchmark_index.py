"""Build time, memory and latency of the index of edited queries, with synthetic edits.

    python examples/benchmark_index.py                      # 100,000 and 1,000,000 edits
    python examples/benchmark_index.py --edits 10000 --device cuda

An edit is a random unit vector (E = 768, BERT's) and a name of two words, of 1,000 each; a query
is a disturbed vector of an edit and a question with its name. Where faiss is installed (pip install
faiss-cpu) its HNSW graph is measured beside it: approximate, and of the vectors alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from meg_editor.routing.index import QueryIndex

_CHUNK = 65536


@dataclass(frozen=True)
class Synthetic:
    """N edits and 64 queries whose edits are known.

    Attributes:
        keys: (N, E) unit vectors in float16.
        names: N of them.
        queries, texts: (64, E) unit vectors, and the texts of the queries.
        rows: (64,) the edit of each query.
    """

    keys: Tensor
    names: list[str]
    queries: Tensor
    texts: list[str]
    rows: Tensor

    @classmethod
    def of(cls, edits: int, dimension: int, seed: int) -> Synthetic:
        chance = torch.Generator().manual_seed(seed)
        keys = torch.empty(edits, dimension, dtype=torch.float16)
        for part in keys.split(_CHUNK):
            part.copy_(F.normalize(torch.randn(part.shape, generator=chance), dim=-1))
        words = torch.randint(1000, (edits, 2), generator=chance).tolist()
        names = [f"Given{first} Family{last}" for first, last in words]
        rows = torch.randint(edits, (64,), generator=chance)
        noise = torch.randn(64, dimension, generator=chance) / dimension**0.5
        queries = F.normalize(keys[rows].float() + 0.5 * noise, dim=-1)
        texts = [f"In which town was {names[row]} born?" for row in rows.tolist()]
        return cls(keys, names, queries, texts, rows)


@dataclass(frozen=True)
class Built:
    """An index, what it takes, and how to ask it the first n queries: (n,) edits."""

    title: str
    seconds: float
    size: int
    search: Callable[[int], Tensor]


def ours(data: Synthetic, device: str) -> Built:
    start = time.perf_counter()
    index = QueryIndex(data.keys, data.names, name_weight=0.2).to(device)
    seconds = time.perf_counter() - start
    queries = data.queries.to(device)
    size = sum(buffer.nbytes for buffer in index.buffers())
    size += index.names.bytes_on_host

    def search(count: int) -> Tensor:
        return index.search(queries[:count], data.texts[:count]).index.cpu()

    return Built(f"ours, {device}", seconds, size, search)


def faiss_graph(data: Synthetic) -> Built:
    import faiss

    start = time.perf_counter()
    dimension, links = data.keys.shape[1], 16
    kind = faiss.ScalarQuantizer.QT_fp16
    graph = faiss.IndexHNSWSQ(dimension, kind, links, faiss.METRIC_INNER_PRODUCT)
    graph.train(data.keys[:1000].float().numpy())
    for part in data.keys.split(_CHUNK):
        graph.add(part.float().numpy())
    graph.hnsw.efSearch = 128
    seconds = time.perf_counter() - start

    def search(count: int) -> Tensor:
        return torch.from_numpy(graph.search(data.queries[:count].numpy(), 8)[1][:, 0])

    size = len(data.keys) * (2 * dimension + 4 * (2 * links + 2))
    return Built("faiss HNSW, cpu", seconds, size, search)


def milliseconds(act: Callable[[], object], times: int = 7) -> float:
    """The median of several runs, after one which does not count."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"{'edits':>9} {'index':<16} build s      MB  1 query ms  64 queries ms  found %")
    for edits in options.edits:
        data = Synthetic.of(edits, options.dimension, options.seed)
        builds = [partial(ours, data, options.device)]
        if importlib.util.find_spec("faiss"):
            builds.append(partial(faiss_graph, data))
        for build in builds:
            built = build()
            one, many = (milliseconds(partial(built.search, count)) for count in (1, 64))
            right = 100 * float((built.search(64) == data.rows).float().mean())
            print(
                f"{edits:9} {built.title:<16} {built.seconds:7.1f} {built.size / 2**20:7.0f} "
                f"{one:11.2f} {many:14.2f} {right:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
