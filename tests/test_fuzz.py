"""Random changes to good files, always the same ones: every reader reads the file, or refuses it with one line."""

import pytest
from fuzzing import BY_NAME, SEEDS, refused, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHEAP = [name for name in BY_NAME if name not in ("report_page",)]
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),  # where in the file
        st.one_of(st.sampled_from(sorted(words())), st.binary(min_size=1, max_size=4)),
        st.sampled_from(("put in", "put over", "cut")),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[float, bytes, str]]) -> bytes:
    for share, put, how in changes:
        place = int(share * len(content))
        if how == "cut":
            content = content[:place]
        else:
            content = content[:place] + put + content[place + (len(put) if how == "put over" else 0) :]
    return content


@pytest.mark.parametrize("name", CHEAP)
def test_changes_to_a_good_file_are_read_or_refused(name):
    target = BY_NAME[name]
    good = SEEDS[target]()
    assert not refused(target, good)
    seen = {True: 0, False: 0}

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def try_changes(changes):
        seen[refused(target, changed(good, changes))] += 1

    try_changes()
    assert sum(seen.values()) >= 60


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["run_folder", "manifest", "report"])
def test_any_value_for_any_setting_is_read_or_refused(name):
    """What changes of bytes seldom do: good JSON with a value of another type in one place."""
    import json

    target = BY_NAME[name]
    good, *others = SEEDS[target]().split(b"\0")
    values = json.loads(good)
    places = [(key,) for key in values] + [(key, k) for key, x in values.items() if isinstance(x, dict) for k in x]

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(places), JSON)
    def try_value(place, value):
        changed = json.loads(good)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        refused(target, b"\0".join([json.dumps(changed).encode(), *others]))

    try_value()
