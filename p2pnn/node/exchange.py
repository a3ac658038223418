"""What the executors of a part say to those on other nodes, and hear from them: which end of which conversation it is for.

Those ends are `node.tensors` (of a model that is cut over nodes), `node.pushing` (of a model replica with the shards),
`node.serving` (of shards with model replicas) and `node.replicating` (of shards with their other replicas).
"""

from __future__ import annotations

from p2pnn.executor import commands
from p2pnn.job.assignment import Assignment, encode
from p2pnn.job.plan import Plan
from p2pnn.job.spec import JobSpec
from p2pnn.node import pushing, replicating, serving, tensors
from p2pnn.node.company import Company
from p2pnn.node.executor import Executor
from p2pnn.node.pushing import Pushing
from p2pnn.node.recording import Recording
from p2pnn.node.room import Room
from p2pnn.node.serving import Serving
from p2pnn.node.tensors import Tensors
from p2pnn.ps.layout import ServerLayout
from p2pnn.types import NodeId
from p2pnn.wire import messages as wire


class Exchange:
    """Of one part. It has no ends until its executors are there (`computes`, `serves`)."""

    def __init__(self) -> None:
        self._tensors: Tensors | None = None
        self._pushing: Pushing | None = None
        self._serving: Serving | None = None
        self._server: Executor | None = None
        self._began = False

    def computes(
        self, spec: JobSpec, plan: Plan, room: Room, company: Company, executor: Executor, recording: Recording
    ) -> None:
        """This executor computes."""
        self._tensors = Tensors(spec, plan, room.tensors, company, executor, recording)
        if room.exchange is not None:
            self._pushing = Pushing(spec, plan, room.exchange, company, executor, recording)

    def serves(
        self, plan: Plan, layout: ServerLayout, company: Company, executor: Executor, recording: Recording
    ) -> None:
        """This executor holds shards."""
        self._serving, self._server = Serving(plan, layout, company, executor, recording), executor

    def begin(self, held: Assignment) -> None:
        """The first command of the script has come, so all nodes are prepared. Before, replicas would miss each other."""
        if self._began:
            return
        self._began = True
        if self._server is not None and (held.shards or held.gone):
            self._server.send(commands.Assigned(encode(held)))
        if self._pushing is not None:
            self._pushing.begin()

    def assigned(self, held: Assignment) -> None:
        """Who has which role has changed."""
        if self._pushing is not None:
            self._pushing.assigned(held)
        if self._serving is not None:
            self._serving.copies.assigned(held)

    def receive(self, node: NodeId, message: wire.Message) -> None:
        """A message without a body."""
        match message:
            case wire.Retired() | wire.Squares() | wire.Dealt() | wire.Decided() if self._tensors is not None:
                self._tensors.receive(node, message)
            case wire.Pushed() | wire.Leased() if self._pushing is not None:
                self._pushing.receive(node, message)
            case wire.Fetch() | wire.Mark() | wire.LeaseWish() | wire.Rest() if self._serving is not None:
                self._serving.receive(node, message)
            case (
                wire.Append()
                | wire.Appended()
                | wire.Beat()
                | wire.UpdateWanted()
                | wire.StateHeld()
                | wire.Superseded()
            ) if self._serving is not None:
                self._serving.copies.receive(node, message)

    def body_for(self, node: NodeId, message: wire.Message, nbytes: int) -> memoryview | None:
        """Where a body shall be received; None: read it and drop it."""
        match message:
            case wire.Tensor() if self._tensors is not None:
                return self._tensors.body_for(node, message, nbytes)
            case wire.Values() if self._pushing is not None:
                return self._pushing.body_for(node, message, nbytes)
            case wire.Push() if self._serving is not None:
                return self._serving.body_for(node, message, nbytes)
            case wire.Forward() | wire.StatePiece() if self._serving is not None:
                return self._serving.copies.body_for(node, message, nbytes)
        return None

    def arrived(self, node: NodeId, message: wire.Message) -> None:
        """A body lies whole in the place that was given for it."""
        match message:
            case wire.Tensor() if self._tensors is not None:
                self._tensors.arrived(message)
            case wire.Values() if self._pushing is not None:
                self._pushing.arrived(message)
            case wire.Push() if self._serving is not None:
                self._serving.arrived(node, message)
            case wire.Forward() | wire.StatePiece() if self._serving is not None:
                self._serving.copies.arrived(node, message)

    def lost(self, node: NodeId) -> None:
        """What was coming from a node will not."""
        if self._pushing is not None:
            self._pushing.lost(node)
        if self._serving is not None:
            self._serving.lost(node)

    def says(self, message: commands.FromExecutor) -> bool:
        """What an executor here says; False where that is not for another one."""
        if isinstance(message, tensors.SAID) and self._tensors is not None:
            self._tensors.says(message)
        elif isinstance(message, pushing.SAID) and self._pushing is not None:
            self._pushing.says(message)
        elif isinstance(message, serving.SAID) and self._serving is not None:
            self._serving.says(message)
        elif isinstance(message, replicating.SAID) and self._serving is not None:
            self._serving.copies.says(message)
        else:
            return False
        return True
