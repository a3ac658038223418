"""What comes out of a run, put into its record and told: the figures of an epoch, a split's evaluation, the result."""

from __future__ import annotations

import msgspec

from p2pnn.errors import JobFailedError
from p2pnn.job.checkpoint import fingerprint
from p2pnn.job.ledger import Ledger
from p2pnn.job.records import SplitResult
from p2pnn.job.sampling import Sampler


def with_validation(entry: dict[str, float], validation: SplitResult) -> dict[str, float]:
    """An epoch's entry in the history, with what its evaluation gave."""
    loss = {} if validation.loss is None else {"validation_loss": validation.loss}
    return entry | loss | {f"validation_{name}": value for name, value in validation.metrics.items()}


def evaluated(ledger: Ledger, result: SplitResult) -> None:
    """A split that is evaluated for its own sake."""
    ledger.change(results=(*ledger.record.results, result))
    ledger.publish("evaluation", **msgspec.to_builtins(result))


def drawn(ledger: Ledger, sampler: Sampler, scores: bytes) -> str:
    """The next token of a text, by the scores of its last position. Returns why there is none, or nothing."""
    try:
        ledger.publish("tokens", tokens=[sampler.take(scores)])
    except JobFailedError as error:
        return str(error)
    return ""


def trained(ledger: Ledger, step: int, last_error: str) -> str:
    """The script of a training run is through, at this step: tell its result. Returns why there is none, or nothing.

    last_error: why the last checkpoint could not be written, if so.
    """
    record = ledger.record
    result = record.outcome
    if result is None or (result is not record.best and result.step != step):
        return f"the last checkpoint could not be written, so there is no result: {last_error}"
    ledger.change(bits=fingerprint(result.parts))
    ledger.publish(
        "result",
        bits=ledger.record.bits,
        step=result.step,
        epoch=result.epoch,
        stopped_early=record.stopped_early,
        evaluation=msgspec.to_builtins(record.results),
    )
    return ""
