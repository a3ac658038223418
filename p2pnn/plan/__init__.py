"""Plan: which op of a job runs on which node, decided before anything starts, with figures and reasons.

`plan` is a pure function of the job, the nodes' profiles and the links: profile → cost → partition (exact DP over contiguous
cuts) → search (branches, judged by predict) → the record `job.plan.Plan` that all nodes then follow. Of a data-parallel job
it says who is a worker and who holds which shard: exchange (bytes, passes, memory) → roles → pace → verdict, joined in `data`.
"""

from p2pnn.plan.planner import headline
from p2pnn.plan.profile import Link, Profile
from p2pnn.plan.ways import best, plan

__all__ = ["Link", "Profile", "best", "headline", "plan"]
