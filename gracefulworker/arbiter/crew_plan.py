"""Who is spawned, who leaves, and in which order: decided here, carried out by `crew`.

gunicorn replaces a worker when it has gone. Here its successor serves before it leaves, if it can::

    members                 all that live
    |
    +-- retiring            told to leave, and finishing what is in flight
    |
    +-- accepting           not told
        |
        +-- outgoing        each is to leave when the heirs are up
        |
        +-- staying
            |
            +-- old         from before the last HUP: leave together when the heirs are up
            |
            +-- heirs       are there when all that is under way is over: `wanted` of them

Any of these may still be booting. The heirs are up when as many as are wanted have booted.

    HUP            all are old, and as many heirs boot  ->  they are up: the old retire
    max_requests   one is outgoing, and an heir boots   ->  it is up: the one retires
    TTIN, a death  there are too few heirs: more boot
    TTOU           there are too many heirs: the oldest retire. With listener sets of which nobody
                   else would accept: they and one more are outgoing, and an heir boots with all
                   their sets

A successor may be unable to boot while its predecessor is there, which has the port, the lock or
the memory that it wants. So when none boots in the time of an overlap the order is gunicorn's::

    it fails, again and again       ->  the one (the old) retires, and is waited for: then one boots
    ... and that one boots at once  ->  the order stays so until the next HUP
    ... and that one fails, too     ->  it was not the predecessor's fault

What may be changed here: that. There is no clock in here, no process and no gunicorn.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Member:
    """A worker as it is at one moment; of a stranger, which has no slot, only the first three."""

    age: int  #: its number among all that the arbiter has spawned
    listeners: frozenset[Hashable] = frozenset()  #: that it accepts from
    is_ours: bool = True  #: else a stranger: of another class (hooks, or from before a HUP)
    booted: bool = True
    retiring: bool = False
    wants_to_retire: bool = False
    dismissed: bool = False  #: told to end while it boots
    hangs: bool = False  #: has been booting for longer than a successor may take


@dataclass(frozen=True)
class Handover:
    """What is under way from one pass to the next; times are monotonic seconds."""

    last_old_age: int = 0  #: who is not younger than this is from before the last HUP
    overlap_until: float = 0.0  #: the old stay until then at the most
    outgoing: frozenset[int] = frozenset()  #: their ages
    outgoing_until: float = 0.0  #: these too
    blamed_at: int = 0  #: the number of failures when leaving ones were first waited for; 0: none
    leave_first: bool = False  #: successors have been seen to boot only when others have gone


@dataclass(frozen=True)
class Orders:
    """What is to be done, from top to bottom."""

    as_gunicorn: bool = False  #: nothing is under way: the arbiter's own manage_workers does it
    retire: Sequence[Member] = ()  #: without a signal, which the application may take for itself
    spawn: int = 0
    terminate: Sequence[Member] = ()  #: with SIGTERM; a stranger again and again, as in gunicorn


@dataclass(frozen=True)
class Roster:
    """The crew at one moment. Its sets are those of the drawing, each with the oldest first."""

    members: Sequence[Member]  #: the oldest first
    wanted: int  #: the arbiter's `num_workers`
    handover: Handover = Handover()
    listeners: frozenset[Hashable] = frozenset()  #: all that there are

    @property
    def accepting(self) -> list[Member]:
        return [member for member in self.members if not member.retiring]

    @property
    def staying(self) -> list[Member]:
        return [m for m in self.accepting if m.age not in self.handover.outgoing]

    @property
    def old(self) -> list[Member]:
        return [m for m in self.staying if m.age <= self.handover.last_old_age]

    @property
    def heirs(self) -> list[Member]:
        return [m for m in self.staying if m.age > self.handover.last_old_age]

    @property
    def booting(self) -> list[Member]:
        return [member for member in self.members if not member.booted]

    @property
    def missing(self) -> int:
        """How many heirs there are too few, or, below 0, too many."""
        return self.wanted - len(self.heirs)

    @property
    def heirs_are_up(self) -> bool:
        return sum(heir.booted for heir in self.heirs) >= self.wanted


def plan(
    roster: Roster,
    *,
    now: float,
    overlap: float,
    serving: bool,
    may_spawn: bool,
    failures: int,
    impatient: bool,
) -> tuple[Handover, Orders]:
    """What is to be done in this pass of the main loop, and what is then under way.

    :param now: monotonic seconds.
    :param overlap: seconds that a successor may take to boot; 0: it boots when there is room.
    :param serving: whether SIGTERM has not come. From then on a failed boot is tried again and
        again, and nobody leaves before that succeeds.
    :param may_spawn: whether enough time has passed since the last boot that failed.
    :param failures: starts that have failed since all were up.
    :param impatient: whether one that asks to retire goes at once (`reload`: a developer waits).
    """
    roster = _learn(roster, failures)
    missing = max(roster.missing, 0)
    if now < roster.handover.overlap_until and (roster.booting or missing):
        return roster.handover, Orders(spawn=missing if may_spawn else 0)
    roster = _replace(roster, overlap_until=0.0)
    roster = _choose(roster, now + overlap)
    leave_first = serving and roster.handover.leave_first
    is_due = leave_first or now >= roster.handover.outgoing_until
    retire: list[Member] = []
    is_late = serving and is_due and _may_be_spared(roster, failures)
    if is_late or impatient or _are_up(roster, serving):
        roster, retire = _retire(roster)
    heirs = roster.heirs
    if roster.missing >= 0 and len(heirs) == len(roster.members):
        return roster.handover, Orders(as_gunicorn=True)
    old = roster.old if serving or roster.heirs_are_up else []
    # Those that leave do not count as too many, and they are replaced now, not when they have gone;
    # but for successors that need their room.
    missing, waited_for = max(roster.missing, 0), 0
    if serving and (failures or leave_first or (not overlap and not _is_deserted(roster))):
        waited_for = min(missing, sum(m.retiring for m in roster.members) + len(old))
        if waited_for and failures:
            roster = _replace(roster, blamed_at=failures)
    return roster.handover, Orders(
        retire=retire,
        spawn=missing - waited_for if may_spawn else 0,
        terminate=_dispensable(heirs, roster.wanted) + old,
    )


def begin_overlap(roster: Roster, last_age: int, until: float) -> tuple[Handover, list[Member]]:
    """HUP: all up to `last_age` are old, until their heirs are up; and whom to dismiss.

    :param until: monotonic seconds.
    """
    # What has been learnt of successors may not hold for those of a new configuration.
    handover = replace(
        roster.handover,
        last_old_age=last_age,
        overlap_until=until,
        blamed_at=0,
        leave_first=False,
    )
    if not any(member.is_ours and member.booted for member in roster.members):
        return handover, []
    return handover, _undismissed(roster.booting)  # a former HUP's, which this one replaces


def needless(roster: Roster, waited_at: Iterable[Hashable]) -> list[Member]:
    """Whom to dismiss in DRAINING: those that boot, and nobody waits for them.

    :param waited_at: the listeners in whose accept queues there is somebody.
    """
    served = {at for member in roster.accepting if member.booted for at in member.listeners}
    unserved = frozenset(waited_at) - served
    return _undismissed(m for m in roster.booting if not m.listeners & unserved)


def _replace(roster: Roster, **changes: object) -> Roster:
    return replace(roster, handover=replace(roster.handover, **changes))  # type: ignore[arg-type]


def _learn(roster: Roster, failures: int) -> Roster:
    """The roster when the first successor has been tried for which others have left."""
    blamed_at = roster.handover.blamed_at
    if not blamed_at or failures == blamed_at:
        return roster
    leave_first = roster.handover.leave_first or not failures
    return _replace(roster, blamed_at=0, leave_first=leave_first)


def _choose(roster: Roster, until: float) -> Roster:
    """The roster with those outgoing that successors shall follow, if none is under way."""
    outgoing = roster.handover.outgoing & {member.age for member in roster.members}
    roster = _replace(roster, outgoing=outgoing)
    if outgoing or not all(member.hangs for member in roster.booting):
        return roster
    heirs = roster.heirs
    surplus = len(heirs) - roster.wanted
    if 0 <= surplus < len(heirs) and _lacks_sets(roster):
        chosen = [heir for heir in heirs[: surplus + 1] if heir.is_ours]
    elif surplus == 0 and len(heirs) == len(roster.members):
        chosen = [heir for heir in heirs if heir.wants_to_retire][:1]
    else:
        chosen = []
    if not chosen:
        return roster
    return _replace(roster, outgoing=frozenset(m.age for m in chosen), outgoing_until=until)


def _may_be_spared(roster: Roster, failures: int) -> bool:
    """Whether the outgoing may leave before a successor has booted.

    Only if all others are up: recycling is to cost the service no second worker, should each
    successor hang. And when some have failed, not while one boots, of which nothing could be learnt
    then. What is old leaves all the same.
    """
    outgoing = roster.handover.outgoing
    if any(age <= roster.handover.last_old_age for age in outgoing):
        return True
    is_tried = failures and not all(member.hangs for member in roster.booting)
    others_up = sum(heir.booted for heir in roster.heirs) >= roster.wanted - len(outgoing)
    return others_up and not is_tried


def _are_up(roster: Roster, serving: bool) -> bool:
    """Whether the heirs are up. One that hangs keeps nobody else's successor waiting."""
    if roster.heirs_are_up:
        return True
    booted = sum(heir.booted for heir in roster.heirs)
    hang = any(heir.hangs for heir in roster.heirs)
    return serving and hang and 0 < roster.wanted - 1 <= booted


def _is_deserted(roster: Roster) -> bool:
    """Whether newcomers come to listeners of their own, and nobody will accept them there."""
    attended = {listener for member in roster.staying for listener in member.listeners}
    return bool(attended) and not attended.issuperset(roster.listeners)


def _retire(roster: Roster) -> tuple[Roster, list[Member]]:
    """The roster when the outgoing have been told, and who is to be; a stranger cannot be."""
    outgoing = [m for m in roster.accepting if m.age in roster.handover.outgoing and m.is_ours]
    members = [replace(m, retiring=True) if m in outgoing else m for m in roster.members]
    return _replace(replace(roster, members=members), outgoing=frozenset()), outgoing


def _lacks_sets(roster: Roster) -> bool:
    """Whether a worker is to be spawned for listener sets, which it takes care of together."""
    heirs = roster.heirs
    if not roster.listeners.issubset(listener for heir in heirs for listener in heir.listeners):
        return True  # one that died was not followed, because of TTOU
    return roster.missing < 0 and not _dispensable(heirs, roster.wanted)


def _dispensable(heirs: list[Member], wanted: int) -> list[Member]:
    """Those that are too many, if the others have booted and accept from all their listeners."""
    surplus = max(len(heirs) - wanted, 0)
    theirs = {listener for heir in heirs[surplus:] for listener in heir.listeners}
    if not all(heir.booted for heir in heirs[surplus:]):
        return []
    return [heir for heir in heirs[:surplus] if theirs.issuperset(heir.listeners)]


def _undismissed(booting: Iterable[Member]) -> list[Member]:
    """Once: its handler sleeps for a moment, and another signal would come on top."""
    return [member for member in booting if not member.dismissed]
