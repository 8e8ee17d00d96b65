"""Remember what was seen of one instance's memories: what is free, what its engine holds, what threatens it.

It must not measure, and decides nothing but what `strain` and `preflight` decide.
"""

from collections.abc import Mapping
from typing import Final

from launcher.domain import HOST_MEMORY, Plan
from launcher.supervisor.breakdown import Breakdown, read_line, remembered
from launcher.supervisor.preflight import Preflight, judge
from launcher.supervisor.strain import Gauge, Sample, Strain, StrainPolicy, Watched, assess
from launcher.units import MIB

_NEWS_BYTES: Final = 32 * MIB
"""By so much more than ever before an engine has to hold of a memory before that is worth learning."""


class Vigil:
    """The memories of one instance, as far as they were looked at; lives in the runner's event loop."""

    def __init__(self, policy: StrainPolicy) -> None:
        """Know nothing yet."""
        self._policy = policy
        self._sample: Sample | None = None
        self._buried_s: float | None = None
        self._baseline: Sample | None = None
        self._watched = Watched()
        self._hearing = Breakdown()
        self._told: Breakdown | None = None
        self._told_for: Plan | None = None
        self._most: dict[str, int] = {}
        self._learnt: dict[str, int] = {}

    # --- Before it loads ---

    def foresee(self, plan: Plan) -> Preflight:
        """Judge a start before anything runs: by what this engine told of the same plan, else by the plan's figure."""
        return judge(plan, self.free_bytes(plan), self.told_by(plan))

    def is_known(self, plan: Plan) -> bool:
        """Whether a start can be judged now: the engine has told what this plan takes, and what is free is known.

        For the first start it is the plan's; later all of the plan's memories must have been seen since the last engine
        went. One that only an engine can look at never is: the engine is asked again, and tells what is free there, too.
        """
        return self.has_told(plan) and (self._buried_s is None or self._has_seen(plan))

    def _has_seen(self, plan: Plan) -> bool:
        names = {HOST_MEMORY, *(use.name for use in plan.footprint.devices)}
        return names <= {gauge.name for gauge in self._seen()}

    def _seen(self) -> tuple[Gauge, ...]:
        """Return the memories that were looked at since the last engine went, as they were then."""
        return self._sample.gauges if self._sample is not None and self.is_fresh else ()

    def remember(self, plan: Plan, told: Breakdown) -> None:
        """Take over what the engine told of this plan in an earlier life."""
        self._told, self._told_for = told, plan

    def told_by(self, plan: Plan) -> Breakdown | None:
        """Return what the engine told of this plan, complete and without what was free then."""
        return self._told if plan == self._told_for else None

    def has_told(self, plan: Plan) -> bool:
        """Whether the engine told, at this start or an earlier one, what this plan takes."""
        return self.told_by(plan) is not None

    @property
    def is_fresh(self) -> bool:
        """Whether what is free was seen since the last engine went."""
        return self.has_seen_since(self._buried_s or 0.0)

    def has_seen_since(self, at_s: float) -> bool:
        """Whether the latest sample was begun at that moment of the samples' clock, or later."""
        return self._sample is not None and self._sample.at_s >= at_s

    def bury(self, at_s: float) -> None:
        """The engine is gone: what was seen to be free is so no longer, until a sample that is begun after ``at_s``."""
        self._buried_s = at_s

    def expect(self) -> None:
        """Listen anew: the next lines are of an engine that starts now."""
        self._hearing = Breakdown()

    def hear(self, plan: Plan, line: str) -> Preflight | None:
        """Take in a line of the starting engine; return the judgement where the line told something of its memory."""
        before = self._hearing
        self._hearing = read_line(before, line)
        if self._hearing is before:
            return None
        if self._hearing.complete:
            self._told, self._told_for = remembered(self._hearing), plan
        return judge(plan, self.free_bytes(plan), self._hearing)

    def free_bytes(self, plan: Plan) -> Mapping[str, int]:
        """Return what is free of each memory: as seen last, else as it was when the plan was made."""
        free = {budget.name: budget.free_bytes for budget in plan.budgets}
        return free | {gauge.name: gauge.free_bytes for gauge in self._seen()}

    # --- While it serves ---

    def begin(self) -> None:
        """The engine is ready: who takes memory from now on is told by the difference to this moment."""
        self._baseline, self._watched = self._sample, Watched()
        self._most, self._learnt = {}, {}

    def see(self, sample: Sample, *, is_serving: bool) -> Strain | None:
        """Take in a sample; return the memory that has become strained, the first of several."""
        self._sample = sample
        if not is_serving:
            return None
        self._baseline = self._baseline or sample
        for name, n_bytes in self.own_bytes().items():
            self._most[name] = max(n_bytes, self._most.get(name, 0))
        self._watched, outlook = assess(self._watched, sample, baseline=self._baseline, policy=self._policy)
        return outlook.strains[0] if outlook.strains else None

    def look_anew(self) -> None:
        """Forget what was strained: who had taken the memory has left, and the next one is to be told again."""
        self._watched = Watched()

    def is_strained(self) -> bool:
        """Whether any memory is short now."""
        return bool(self._watched.strained)

    def used_up(self) -> tuple[str, int] | None:
        """Return the first device of whose memory less is free than a calm one has, and how many bytes less."""
        lacks = ((g.name, self._policy.lacks_bytes(g)) for g in self._seen() if g.name != HOST_MEMORY)
        return next((found for found in lacks if found[1]), None)

    def own_bytes(self) -> Mapping[str, int]:
        """Return what the engine's processes hold of each memory, where somebody tells."""
        gauges = self._sample.gauges if self._sample else ()
        return {gauge.name: gauge.own_bytes for gauge in gauges if gauge.own_bytes is not None}

    def news(self) -> Mapping[str, int]:
        """Return the most that the engine has held of each memory, where that is clearly more than was last returned."""
        new = {
            name: n_bytes
            for name, n_bytes in self._most.items()
            if name not in self._learnt or n_bytes - self._learnt[name] >= _NEWS_BYTES
        }
        self._learnt |= new
        return new
