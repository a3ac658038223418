"""Plan: which op of a job runs on which node, decided before anything starts, with figures and reasons.

`plan` is a pure function of the job, the nodes' profiles and the links: profile → cost → partition (exact DP over contiguous
cuts) → search (branches, judged by predict) → the record `job.plan.Plan` that all nodes then follow.
"""

from p2pnn.plan.planner import headline, plan
from p2pnn.plan.profile import Link, Profile

__all__ = ["Link", "Profile", "headline", "plan"]
