"""The segment machine: decides what one node computes next and what it may send. Pure; it owns no socket and no clock.

Feed it what happened (`command`, `arrived`, `sent`, `peer_retired`, `peer_squares`), ask it what to do (`next_action`, then
`done` when that is carried out), and pass on what `outgoing` returns.

A run is a row of *stages*: one per training step, one per evaluation or prediction, one (of no micro-batches) per
checkpoint or restore. A node finishes a stage before it begins the next; nodes are in different stages at the same time.
Micro-batches are numbered through all stages of one start. Within a stage each segment runs forwards, and backwards, in
micro-batch order, and a backward pass that may run goes before any forward pass (1F1B falls out).

Why no mesh can hang, for any number of frames F ≥ 1: let m be the least micro-batch that some node has not
retired. Every node's window [retired, retired + F) has m in it or behind it, so nobody lacks credit to send what m needs;
segments have no cycle, so some segment can work on m. A step's update needs only micro-batches of that step and before.

Global-norm clipping: when a node is done with a step's gradients it makes Squares, and its Update waits for those of all
other nodes that own parameters, so that every node scales by the same number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from p2pnn.errors import LocalProtocolError
from p2pnn.job import script
from p2pnn.train.schedule import Mode, ModeTasks, Routes, Task


class Forward(NamedTuple):
    task: Task
    micro_batch: int


class Backward(NamedTuple):
    task: Task
    micro_batch: int


class Squares(NamedTuple):
    """Sum this node's gradients and their squares, and send the squares to the other nodes."""

    step: int


class Update(NamedTuple):
    """Apply the step's gradients. squares: per node (this one's as given to `done`), or None where nothing is clipped."""

    step: int
    squares: Mapping[int, Sequence[float]] | None


class Answer(NamedTuple):
    """A command is done: say so, with its result. A Checkpoint or Restore is carried out now, before anything else."""

    command: script.Train | script.Evaluate | script.Predict | script.Checkpoint | script.Restore


class Finished(NamedTuple):
    """The script has ended and everything has left."""


Action = Forward | Backward | Squares | Update | Answer | Finished


class Send(NamedTuple):
    """A tensor is in its place and its receiver has room."""

    transfer: int
    micro_batch: int


class Retired(NamedTuple):
    """All micro-batches before number `until` are done here."""

    until: int


class Stage(NamedTuple):
    """A stretch of `batches` micro-batches from number `first` on. step: the training step; split: what is evaluated."""

    mode: Mode
    first: int
    batches: int
    step: int = 0
    split: str = ""

    @property
    def end(self) -> int:
        return self.first + self.batches


class Machine:
    """One node of one start of a job.

    micro_batches: per training step. step: steps done before this start. split_batches: split name → micro-batches of
    one pass over it. clip: whether global-norm clipping is on. stage: what the actions now returned belong to.
    """

    def __init__(
        self,
        routes: Routes,
        frames: int,
        micro_batches: int,
        *,
        step: int = 0,
        split_batches: Mapping[str, int] | None = None,
        clip: bool = False,
    ) -> None:
        self._routes = routes
        self._frames = frames
        self._micro_batches = micro_batches
        self._split_batches = dict(split_batches or {})
        self._clip = clip
        me = routes.node_index
        self._incoming = {t.index for t in routes.transfers if t.target == me}
        self._target = {t.index: t.target for t in routes.transfers if t.source == me}
        owners = {node for node, names in enumerate(routes.owned) if names}
        self._peers_with_squares = owners - {me} if me in owners else set()
        self._owner = me in owners

        self.step = step
        self.retired = 0
        self.stage = Stage("train", 0, 0)
        self._tasks: ModeTasks = routes.modes["train"]
        self._have = [0] * frames
        self._goal = [-1] * frames  # the bits that retire a frame's micro-batch; −1 before its stage has begun
        self._remaining = 0  # computations left in this stage
        self._next_forward: list[int] = []
        self._next_backward: list[int] = []
        self._commands: deque[script.Command] = deque()
        self._ending: deque[Action] = deque()
        self._doing: Action | None = None
        self._peer_retired: dict[int, int] = {}
        self._waiting: list[Send] = []
        self._look_at_waiting = False
        self._told = 0
        self._squares: dict[int, dict[int, Sequence[float]]] = {}

    # what happened

    def command(self, command: script.Command) -> None:
        """The next command of the script. Raises LocalProtocolError for a split that the job does not have."""
        split = {script.Evaluate: getattr(command, "split", ""), script.Predict: "test"}.get(type(command))
        if split is not None and split not in self._split_batches:
            raise LocalProtocolError(f"the job has no data for its split {split!r}")
        self._commands.append(command)

    def arrived(self, transfer: int, micro_batch: int) -> None:
        """A tensor lies whole in its place. Raises LocalProtocolError for one that could not have been sent."""
        bit = 1 << transfer
        frame = micro_batch % self._frames
        in_window = self.retired <= micro_batch < self.retired + self._frames
        if transfer not in self._incoming or not in_window or self._have[frame] & bit:
            raise LocalProtocolError(
                f"tensor {transfer} of micro-batch {micro_batch} came unasked ({self.retired} are retired)"
            )
        self._have[frame] |= bit

    def sent(self, transfer: int, micro_batch: int) -> None:
        """A tensor has left; its place is free once all of its transfers are sent."""
        if transfer not in self._target or not self.retired <= micro_batch < self.retired + self._frames:
            raise LocalProtocolError(f"tensor {transfer} of micro-batch {micro_batch} was not being sent")
        self._have[micro_batch % self._frames] |= 1 << transfer
        self._retire()

    def peer_retired(self, node: int, count: int) -> None:
        """Node `node` has retired all micro-batches below `count`; an older count that comes late changes nothing."""
        if count > self._peer_retired.get(node, 0):
            self._peer_retired[node] = count
            self._look_at_waiting = True

    def peer_squares(self, node: int, step: int, squares: Sequence[float]) -> None:
        """Another node's squares. Raises LocalProtocolError when they are not those of its parameters."""
        if not 0 <= node < len(self._routes.owned) or len(squares) != len(self._routes.owned[node]):
            raise LocalProtocolError(f"node {node} sent {len(squares)} squares for step {step}, which it does not own")
        if self.step <= step <= self.step + 1:  # a peer is at most one step ahead: it needed our squares of this one
            self._squares.setdefault(step, {})[node] = squares

    # what to do

    def next_action(self) -> Action | None:
        """What to do now, or None to wait for news. Call `done` before asking again."""
        if self._doing is not None:
            raise LocalProtocolError("an action was asked for while another was not done")
        while not self._remaining and not self._ending:
            if not self._commands:
                return None
            self._begin()
        self._doing = self._backward() or self._forward() if self._remaining else self._end()
        return self._doing

    def done(self, action: Action, squares: Sequence[float] = ()) -> None:
        """The action is carried out; `squares` belong to Squares."""
        if self._doing is not action:
            raise LocalProtocolError(f"{action} was not the action to do")
        self._doing = None
        if isinstance(action, (Forward, Backward)):
            self._computed(action)
            return
        if isinstance(action, Squares):
            self._squares.setdefault(action.step, {})[self._routes.node_index] = squares
        elif isinstance(action, Update):
            self._squares.pop(action.step, None)
            self.step += 1
        self._ending.popleft()

    def outgoing(self) -> list[Send | Retired]:
        """What may be sent now and was not returned before. What may go overtakes what may not."""
        ready: list[Send | Retired] = []
        if self._look_at_waiting and self._waiting:
            kept: list[Send] = []
            for send in self._waiting:
                credit = self._peer_retired.get(self._target[send.transfer], 0) + self._frames
                (ready if send.micro_batch < credit else kept).append(send)
            self._waiting = kept
        self._look_at_waiting = False
        if self.retired > self._told:
            self._told = self.retired
            ready.append(Retired(self.retired))
        return ready

    # within

    def _begin(self) -> None:
        """Begin the next stage of the script; a Train command stays at the head until its last step has begun."""
        command = self._commands[0]
        first = self.stage.end
        if isinstance(command, script.Train) and command.until_step > self.step:
            self._start(Stage("train", first, self._micro_batches, step=self.step))
            if self._clip and self._owner:
                self._ending.append(Squares(self.step))
            self._ending.append(Update(self.step, None))
            return
        self._commands.popleft()
        if isinstance(command, script.Evaluate):
            self._start(Stage("evaluate", first, self._split_batches[command.split], split=command.split))
        elif isinstance(command, script.Predict):
            self._start(Stage("predict", first, self._split_batches["test"], split="test"))
        self._ending.append(Finished() if isinstance(command, script.Finish) else Answer(command))

    def _start(self, stage: Stage) -> None:
        self.stage = stage
        self._tasks = self._routes.modes[stage.mode]
        self._remaining = stage.batches * self._tasks.computations
        self._next_forward = [stage.first] * len(self._routes.segments)
        self._next_backward = [stage.first] * len(self._routes.segments)
        for m in range(max(stage.first, self.retired), min(stage.end, self.retired + self._frames)):
            self._goal[m % self._frames] = self._tasks.complete
        self._retire()

    def _backward(self) -> Backward | None:
        """The ready backward pass of the least micro-batch, deepest segment first."""
        if self.stage.mode != "train":
            return None
        best, bound = None, min(self.stage.end, self.retired + self._frames)
        for task in self._tasks.tasks:
            m = self._next_backward[task.position]
            if m < bound and task.has_backward and not task.backward_needs & ~self._have[m % self._frames]:
                best, bound = Backward(task, m), m + 1
        return best

    def _forward(self) -> Forward | None:
        """The ready forward pass of the least micro-batch, shallowest segment first."""
        best, bound = None, min(self.stage.end, self.retired + self._frames)
        for task in self._tasks.tasks:
            m = self._next_forward[task.position]
            if m < bound and not task.needs & ~self._have[m % self._frames]:
                best, bound = Forward(task, m), m
        return best

    def _computed(self, action: Forward | Backward) -> None:
        position = action.task.position
        if isinstance(action, Forward):
            self._next_forward[position] += 1
            bit, sends = action.task.makes, action.task.sends
        else:
            self._next_backward[position] += 1
            bit, sends = action.task.backward_makes, action.task.backward_sends
        self._have[action.micro_batch % self._frames] |= bit
        self._remaining -= 1
        if sends:
            self._waiting += [Send(transfer, action.micro_batch) for transfer in sends]
            self._look_at_waiting = True
        self._retire()

    def _end(self) -> Action | None:
        """The stage's computations are done: the next of what closes it, or None while it must wait."""
        action = self._ending[0]
        if isinstance(action, Update) and self._clip and self._owner:
            squares = self._squares[action.step]
            if not self._peers_with_squares <= squares.keys():
                return None
            self._ending[0] = action = Update(action.step, dict(squares))
        if isinstance(action, Finished) and self.retired < self.stage.end:
            return None
        return action

    def _retire(self) -> None:
        """Retire micro-batches in order; a frame that is free belongs to the micro-batch `frames` later."""
        frame = self.retired % self._frames
        while (goal := self._goal[frame]) >= 0 and self._have[frame] & goal == goal:
            later = self.retired + self._frames
            self._have[frame] = 0
            self._goal[frame] = self._tasks.complete if self.stage.first <= later < self.stage.end else -1
            self.retired += 1
            frame = self.retired % self._frames
