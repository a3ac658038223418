"""The flags of data parallelism, each with its default in its help; they go with `--parallel data`, `hybrid` and `auto`."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

DATA_PANEL: Final = "Data parallelism (--parallel data)"


def _option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, rich_help_panel=DATA_PANEL, help=help, metavar=metavar)


Workers = Annotated[
    int | None,
    _option(
        "--workers",
        metavar="N",
        help="With --parallel data: model replicas, one per node (with hybrid, per --segments nodes); 0 for all with room.  "
        "[default: 0]",
    ),
]
Segments = Annotated[
    int | None,
    _option(
        "--segments",
        metavar="N",
        help="With --parallel hybrid: nodes that each worker is cut over; 0 for as many as is fastest.  [default: 0]",
    ),
]
Shards = Annotated[
    int | None,
    _option(
        "--shards",
        metavar="N",
        help="With --parallel data: shards of the parameters; 0 for as many as make no step slower.  [default: 0]",
    ),
]
Replicas = Annotated[
    int | None,
    _option(
        "--replicas",
        metavar="N",
        help="With --parallel data: nodes that hold each shard: with 2 a lost one costs no update, with 1 the run goes on from "
        "its newest checkpoint; 0 for 2 where there is room (with hybrid, where nodes that compute nothing hold shards).  "
        "[default: 0]",
    ),
]
Consistency = Annotated[
    str | None,
    _option(
        "--consistency",
        metavar="async|ssp:S|sync|local:H",
        help="With --parallel data: async (Downpour), ssp:S (at most S pushes apart), sync (one update per step), local:H "
        "(DiLoCo).  [default: async]",
    ),
]
Backup = Annotated[
    int | None,
    _option(
        "--backup", metavar="N", help="Of sync: the N slowest gradients of a step are not waited for.  [default: 0]"
    ),
]
PushEvery = Annotated[
    int | None,
    _option("--push-every", metavar="N", help="Of async: steps whose gradients go in one push.  [default: 1]"),
]
FetchEvery = Annotated[
    int | None,
    _option("--fetch-every", metavar="N", help="Of async: steps from one fetch to the next.  [default: 1]"),
]
PushCompression = Annotated[
    str | None,
    _option(
        "--push-compression",
        metavar="NAME",
        help="What gradients are pushed as: float32, bf16, int8, or top:F for the largest share F.  [default: float32]",
    ),
]
PullCompression = Annotated[
    str | None,
    _option("--pull-compression", metavar="NAME", help="What parameters are fetched as, likewise.  [default: float32]"),
]
LocalRate = Annotated[
    float | None,
    _option(
        "--local-rate",
        metavar="R",
        help="Of async: the rate at which a worker applies its own gradients at once; 0 for never.  [default: 0]",
    ),
]
WarmStart = Annotated[
    int | None,
    _option(
        "--warm-start", metavar="N", help="Of async: updates that the first worker makes alone first.  [default: 0]"
    ),
]
StalenessMax = Annotated[
    int | None,
    _option(
        "--staleness-max",
        metavar="N",
        help="Of async: pushes that are more updates behind are refused; 0 for none.  [default: 0]",
    ),
]
ScaleByStaleness = Annotated[
    bool | None,
    _option(
        "--scale-by-staleness/--no-scale-by-staleness",
        help="Of async: divide a push's rate by how many updates it is behind.  [default: no]",
    ),
]
ShardPolicy = Annotated[
    str | None,
    _option(
        "--shard-policy",
        metavar="NAME",
        help="How parameters are cut: equal bytes, greedy or round-robin by tensors.  [default: equal]",
    ),
]
