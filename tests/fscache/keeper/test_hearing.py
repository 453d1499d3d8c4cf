"""Whether a worker hears: Hypothesis plays one that speaks, is silent, or stops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nydus_erofs.fscache.keeper.children.hearing import DEAF, QUIET, UNBORN, Hearing, Verdict

steps = st.lists(st.tuples(st.sampled_from(["looks", "says"]), st.floats(0, 4)), max_size=60)


@given(steps)
def test_only_who_was_asked_and_said_nothing_is_replaced(events: list[tuple[str, float]]) -> None:
    now, hearing = 50.0, Hearing(50.0)
    heard, asked, ever = now, None, False
    for event, passes in events:
        now += passes
        if event == "says":
            hearing.heard(now)
            heard, asked, ever = now, None, True
            continue
        verdict = hearing.look(now)
        if asked is None:
            assert verdict is (Verdict.ASK if now - heard >= QUIET else Verdict.WAIT)
            asked = now if verdict is Verdict.ASK else None
        else:
            late = now - asked >= (DEAF if ever else UNBORN)
            assert verdict is (Verdict.REPLACE if late else Verdict.WAIT)


def test_words_are_no_work() -> None:
    hearing = Hearing(10.0)
    hearing.heard(50.0)
    assert hearing.idle(60.0) == 50.0
    hearing.worked(55.0)
    assert hearing.idle(60.0) == 5.0


def test_one_that_stops_is_replaced_soon() -> None:
    hearing = Hearing(0.0)
    hearing.heard(1.0)
    looks = [hearing.look(100.0 + half / 2) for half in range(20)]
    assert looks.index(Verdict.ASK) == 0
    assert looks.index(Verdict.REPLACE) == DEAF * 2


def test_one_that_starts_has_its_time() -> None:
    hearing = Hearing(0.0)
    looks = [hearing.look(float(second)) for second in range(60)]
    assert looks.index(Verdict.REPLACE) == QUIET + UNBORN
