"""The segment machine: decides what one node computes next and what it may send. Pure; it owns no socket and no clock.

Feed it what happened (`command`, `arrived`, `sent`, `peer_retired`, `peer_squares`), ask it what to do (`next_action`, then
`done` when that is carried out), and pass on what `outgoing` returns.

A run is a row of *stages*: one for each stretch of training steps, one per evaluation or prediction, one (of no
micro-batches) per checkpoint or restore. Train commands that follow each other are one stage, which grows with each of
them. A node finishes a stage before it begins the next; nodes are in different stages at the same time. Micro-batches are
numbered through all stages of one start. Within a stage each segment runs forwards, and backwards, in micro-batch order,
and a backward pass that may run goes before any forward pass (1F1B falls out).

A step's update comes right after all of the step's passes on this node, and before any backward pass of the next step.
With a *delay* of d (`async:K`, see `job.segment.delays`) forward passes may run up to d steps ahead of the updates: that
of step t needs the parameters after max(0, t − d) updates, and so does its backward pass, though newer ones exist by
then (`executor.weights` keeps them apart). Nothing else differs: `sync` is a delay of 0.

Why no mesh can hang, for any number of frames F ≥ 1 and any delays: let m be the least micro-batch that some node has not
retired. Every node's window [retired, retired + F) has m in it or behind it, so nobody lacks credit to send what m needs.
All passes of earlier steps are done everywhere, so their updates are due everywhere and wait for nothing of m's step or
later; none of them is needed beyond what m's own step may ask for, its number less the delay. Segments have no cycle, so
some segment can work on m.

A *gated* machine, of a model replica whose parameters come from elsewhere, begins no training step before `allow` has said so.

Global-norm clipping: when a node is done with a step's gradients it makes Squares, and its Update waits for those of all
other nodes that own parameters, so that every node scales by the same number. With several steps in flight nobody waits:
each node clips by the norm of its own gradients.
"""

from __future__ import annotations

from collections import Counter, deque
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

    command: script.Train | script.Evaluate | script.Predict | script.Sample | script.Checkpoint | script.Restore


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
    """The micro-batches from number `first` to before `end`. step: the training step of the first one; per_step: how many
    make a step; split: what is evaluated; tokens: the row of a Sample."""

    mode: Mode
    first: int
    end: int
    step: int = 0
    per_step: int = 1
    split: str = ""
    tokens: tuple[int, ...] = ()

    def at(self, micro_batch: int) -> tuple[int, int]:
        """The training step of a micro-batch, and which of that step's it is; an evaluation is all one step 0."""
        if self.mode != "train":
            return 0, micro_batch - self.first
        steps, index = divmod(micro_batch - self.first, self.per_step)
        return self.step + steps, index

    def begin(self, step: int) -> int:
        """The first micro-batch of a training step."""
        return self.first + (step - self.step) * self.per_step


class Machine:
    """One node of one start of a job.

    micro_batches: per training step. delay: how many steps forward passes may run ahead of updates. step: steps done
    before this start. split_batches: split name → micro-batches of one pass over it. clip: whether nodes exchange squares.
    gated: whether training steps wait to be allowed. stage: what the actions now returned belong to.
    """

    def __init__(
        self,
        routes: Routes,
        frames: int,
        micro_batches: int,
        *,
        delay: int = 0,
        step: int = 0,
        split_batches: Mapping[str, int] | None = None,
        clip: bool = False,
        gated: bool = False,
    ) -> None:
        self._routes = routes
        self._frames = frames
        self._delay = delay
        self._split_batches = dict(split_batches or {})
        me = routes.node_index
        self._incoming = {t.index for t in routes.transfers if t.target == me}
        self._target = {t.index: t.target for t in routes.transfers if t.source == me}
        owners = {node for node, names in enumerate(routes.owned) if names}
        self._peers_with_squares = owners - {me} if me in owners else set()
        self._exchanges = clip and me in owners

        self.step = step
        self._gated = gated
        self._allowed = step  # where gated: training steps below this may be computed
        self.retired = 0
        self.stage = Stage("train", 0, 0, step, micro_batches)
        self._per_step = micro_batches
        self._tasks: ModeTasks = routes.modes["train"]
        self._have = [0] * frames
        self._goal = [-1] * frames  # the bits that retire a frame's micro-batch; −1 before its stage has begun
        self._computed: Counter[int] = Counter()  # computations done in this stage, by step
        self._next_forward = [0] * len(routes.segments)
        self._next_backward = [0] * len(routes.segments)
        self._commands: deque[script.Command] = deque()
        self._open: deque[script.Command] = deque()  # begun and not answered: one, or any number of Train commands
        self._doing: Action | None = None
        self._peer_retired: dict[int, int] = {}
        self._waiting: list[Send] = []
        self._look_at_waiting = False
        self._told = 0
        self._squares: dict[int, dict[int, Sequence[float]]] = {}

    @property
    def forwarded(self) -> int:
        """All of this node's forward passes of training steps below this number are done."""
        return self.stage.at(min((self._next_forward[t.position] for t in self._tasks.tasks), default=self.stage.end))[
            0
        ]

    @property
    def snapshot_every(self) -> int:
        """Of the Train command that is being carried out; 0 where none is. Ask it right after an update."""
        command = self._open[0] if self._open else None
        return command.snapshot_every if isinstance(command, script.Train) else 0

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

    def split(self, batches: Mapping[str, int]) -> None:
        """From the next command on, as many micro-batches of each split are this node's."""
        self._split_batches = dict(batches)

    def allow(self, step: int) -> None:
        """A gated machine may compute training steps up to and including this one."""
        self._allowed = step + 1

    @property
    def next_step(self) -> int:
        """The training step that a gated machine would begin if it were allowed; −1 where there is none.

        Ask it when `next_action` has found nothing to do.
        """
        stage = self.stage
        wants = self._gated and stage.mode == "train" and self._allowed <= self.step and self._doing is None
        return self.step if wants and stage.begin(self.step) < stage.end else -1

    # what to do

    def next_action(self) -> Action | None:
        """What to do now, or None to wait for news. Call `done` before asking again."""
        if self._doing is not None:
            raise LocalProtocolError("an action was asked for while another was not done")
        while self._commands and self._begin(self._commands[0]):
            self._commands.popleft()
        action = self._due()
        if action is None:
            action = self._backward() or self._forward()
        self._doing = action
        return action

    def done(self, action: Action, squares: Sequence[float] = ()) -> None:
        """The action is carried out; `squares` belong to Squares."""
        if self._doing is not action:
            raise LocalProtocolError(f"{action} was not the action to do")
        self._doing = None
        if isinstance(action, (Forward, Backward)):
            self._passed(action)
        elif isinstance(action, Squares):
            self._squares.setdefault(action.step, {})[self._routes.node_index] = squares
        elif isinstance(action, Update):
            self._squares.pop(action.step, None)
            self._computed.pop(action.step, None)
            self.step += 1
        else:
            self._open.popleft()

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
        if self.retired > self._told and self._incoming:  # where nobody sends to this node, nobody waits for it
            self._told = self.retired
            ready.append(Retired(self.retired))
        return ready

    # within

    def _begin(self, command: script.Command) -> bool:
        """Begin a command, unless it must wait for those before it. Only Train follows Train without waiting."""
        trains = isinstance(command, script.Train)
        if self._open and not (trains and isinstance(self._open[0], script.Train)):
            return False
        first = self.stage.end
        self._open.append(command)
        if isinstance(command, script.Train):
            if self.stage.mode != "train":
                self._start(Stage("train", first, first, self.step, self._per_step))
            self.stage = self.stage._replace(end=max(first, self.stage.begin(command.until_step)))
            self._claim()
        elif isinstance(command, script.Evaluate):
            self._start(Stage("evaluate", first, first + self._split_batches[command.split], split=command.split))
        elif isinstance(command, script.Predict):
            self._start(Stage("predict", first, first + self._split_batches["test"], split="test"))
        elif isinstance(command, script.Sample):
            self._start(Stage("predict", first, first + 1, tokens=command.tokens))
        return True

    def _start(self, stage: Stage) -> None:
        self.stage = stage
        self._tasks = self._routes.modes[stage.mode]
        self._computed.clear()
        self._next_forward = [stage.first] * len(self._routes.segments)
        self._next_backward = [stage.first] * len(self._routes.segments)
        self._claim()

    def _claim(self) -> None:
        """Give the stage's micro-batches the frames that are free for them."""
        for m in range(max(self.stage.first, self.retired), min(self.stage.end, self.retired + self._frames)):
            self._goal[m % self._frames] = self._tasks.complete
        self._retire()

    def _due(self) -> Action | None:
        """What the computations that are done make due: an update, or an answer."""
        stage, per_batch = self.stage, self._tasks.computations
        training = stage.mode == "train" and stage.begin(self.step) < stage.end
        if training and self._computed[self.step] == stage.per_step * per_batch:
            return self._update()
        command = self._open[0] if self._open else None
        match command:
            case None:
                return None
            case script.Train():
                return Answer(command) if command.until_step <= self.step else None
            case script.Evaluate() | script.Predict() | script.Sample():
                return Answer(command) if self._computed[0] == (stage.end - stage.first) * per_batch else None
            case script.Finish():
                return Finished() if self.retired >= stage.end else None
            case _:
                return Answer(command)

    def _update(self) -> Action | None:
        """The update of this step, or what must come before it; None to wait for other nodes' squares."""
        if not self._exchanges:
            return Update(self.step, None)
        squares = self._squares.get(self.step, {})
        if self._routes.node_index not in squares:
            return Squares(self.step)
        return Update(self.step, dict(squares)) if self._peers_with_squares <= squares.keys() else None

    def _backward(self) -> Backward | None:
        """The ready backward pass of the least micro-batch, deepest segment first."""
        stage = self.stage
        if stage.mode != "train":
            return None
        best, bound = None, min(stage.end, self.retired + self._frames, stage.begin(self.step + 1))
        for task in self._tasks.tasks:
            m = self._next_backward[task.position]
            if m < bound and task.has_backward and not task.backward_needs & ~self._have[m % self._frames]:
                best, bound = Backward(task, m), m + 1
        return best

    def _forward(self) -> Forward | None:
        """The ready forward pass of the least micro-batch, shallowest segment first."""
        stage = self.stage
        best, bound = None, min(stage.end, self.retired + self._frames)
        if stage.mode == "train":
            bound = min(bound, stage.begin(self.step + self._delay + 1))
            if self._gated:
                bound = min(bound, stage.begin(self._allowed))
        for task in self._tasks.tasks:
            m = self._next_forward[task.position]
            if m < bound and not task.needs & ~self._have[m % self._frames]:
                best, bound = Forward(task, m), m
        return best

    def _passed(self, action: Forward | Backward) -> None:
        position = action.task.position
        if isinstance(action, Forward):
            self._next_forward[position] += 1
            bit, sends = action.task.makes, action.task.sends
        else:
            self._next_backward[position] += 1
            bit, sends = action.task.backward_makes, action.task.backward_sends
        self._have[action.micro_batch % self._frames] |= bit
        self._computed[self.stage.at(action.micro_batch)[0]] += 1
        if sends:
            self._waiting += [Send(transfer, action.micro_batch) for transfer in sends]
            self._look_at_waiting = True
        self._retire()

    def _retire(self) -> None:
        """Retire micro-batches in order; a frame that is free belongs to the micro-batch `frames` later."""
        frame = self.retired % self._frames
        while (goal := self._goal[frame]) >= 0 and self._have[frame] & goal == goal:
            later = self.retired + self._frames
            self._have[frame] = 0
            self._goal[frame] = self._tasks.complete if self.stage.first <= later < self.stage.end else -1
            self.retired += 1
            frame = self.retired % self._frames
