import math
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multipert.data import canonical_dose, canonical_label, parse_condition
from multipert.data._codec import ConditionCodec, parse_column, tokens
from multipert.data._conditions import close_matches

DELIMITERS = ["+", "_", "|", "-", "&&", " and "]
names = st.text(alphabet="ABCxyz0189@.é β", min_size=1, max_size=8).map(str.strip).filter(bool)
doses = st.one_of(st.integers(1, 10**6).map(float), st.floats(1e-30, 1e30))
conditions = st.dictionaries(names, doses, min_size=1, max_size=4).map(lambda parts: tuple(sorted(parts.items())))
shuffles = st.randoms(use_true_random=False)


def written(parts, delimiter: str = "+", rng: random.Random | None = None) -> tuple[str, str]:
    """Parts as a label and its doses, in the given order, spaced at random."""
    pad = (lambda text: " " * rng.randrange(3) + text + " " * rng.randrange(3)) if rng else str
    return delimiter.join(pad(name) for name, _ in parts), delimiter.join(pad(repr(dose)) for _, dose in parts)


@given(conditions, shuffles)
def test_order_and_spaces_change_nothing(condition, rng):
    parts = list(condition)
    rng.shuffle(parts)
    doses_without_plus = [(name, float(f"{dose:.6f}") or 1.0) for name, dose in parts if dose < 1e15]
    if doses_without_plus:
        assert parse_condition(*written(doses_without_plus, rng=rng)) == tuple(sorted(doses_without_plus))
    assert parse_condition(written(parts, rng=rng)[0]) == tuple((name, 1.0) for name, _ in condition)


@given(conditions, shuffles, st.integers(1, 3))
def test_control_tokens_and_zero_doses_are_dropped(condition, rng, n_extra):
    parts = [(name, 2.5) for name, _ in condition]
    extra = [("control", 7.0)] * n_extra + [(f"zero{i}", 0.0) for i in range(n_extra)]
    mixed = parts + extra
    rng.shuffle(mixed)
    assert parse_condition(*written(mixed, rng=rng)) == tuple(parts)


@given(names, st.sampled_from(["0", 0, 0.0, np.float32(0)]))
def test_a_zero_dose_is_control(name, zero):
    assert parse_condition(name, zero) == ()


@given(conditions, st.sampled_from(DELIMITERS))
def test_what_is_written_is_read_back(condition, delimiter):
    """Also for doses whose text holds a sign or exponent, and for delimiters that occur in numbers."""
    condition = tuple(sorted((name.replace("_", "").replace("-", ""), dose) for name, dose in condition))
    if delimiter == "-":
        condition = tuple((name, dose) for name, dose in condition if "e-" not in repr(dose))
    label = canonical_label(condition, delimiter=delimiter)
    assert parse_condition(label, canonical_dose(condition, delimiter=delimiter), delimiter=delimiter) == condition
    assert canonical_label(parse_condition(label, delimiter=delimiter), delimiter=delimiter) == label


@given(names, doses)
def test_without_a_delimiter_a_label_is_one_perturbation(name, dose):
    label = f"{name}+{name}"
    assert parse_condition(f" {label} ", dose, delimiter=None) == ((label, dose),)
    assert parse_condition(label, canonical_dose(((label, dose),), delimiter=None), delimiter=None) == ((label, dose),)


def test_control_written_and_read_back():
    assert canonical_label((), control="ctrl") == "ctrl"
    assert canonical_dose(()) == "0"
    assert parse_condition("ctrl", "0", control="ctrl") == ()


@pytest.mark.parametrize("control", ["DMSO+medium", " ctrl ", "ctrl"])
def test_the_control_label_may_hold_the_delimiter_or_spaces(control):
    assert parse_condition(control, control=control) == ()
    assert parse_condition(f"  {control}", 0, control=control) == ()


def test_doses_follow_the_order_of_the_label():
    assert parse_condition("B+A", "5+1") == (("A", 1.0), ("B", 5.0))
    assert parse_condition("A+B", "5+1") == (("A", 5.0), ("B", 1.0))
    assert parse_condition("control+B+A", "5+1") == (("A", 1.0), ("B", 5.0))
    assert parse_condition("B+A", 3) == (("A", 3.0), ("B", 3.0))
    assert parse_condition("A", np.float32(0.1)) == (("A", 0.1),)


@pytest.mark.parametrize(("dose", "expected"), [("1e+05", 1e5), ("1e-05", 1e-5), (" 5 ", 5.0), ("1e5", 1e5)])
def test_a_number_that_holds_the_delimiter_is_one_number(dose, expected):
    assert parse_condition("A", dose) == (("A", expected),)
    assert parse_condition("A+B", dose) == (("A", expected), ("B", expected))


def test_an_underscore_between_doses_is_not_part_of_a_number():
    """Python reads "1_5" as 15."""
    assert parse_condition("A_B", "1_5", delimiter="_") == (("A", 1.0), ("B", 5.0))


@pytest.mark.parametrize("label", ["", " ", "A+", "+A", "A++B", "A+ +B"])
def test_empty_parts_are_refused(label):
    with pytest.raises(ValueError, match="empty part") as error:
        parse_condition(label)
    assert repr(label) in str(error.value)


@pytest.mark.parametrize("label", ["A+A", "A + B+A ", "control+A+A"])
def test_repeated_parts_are_refused(label):
    with pytest.raises(ValueError, match="names A more than once"):
        parse_condition(label)


def test_a_repeat_without_a_dose_is_dropped_before():
    assert parse_condition("A+A", "1+0") == (("A", 1.0),)


@pytest.mark.parametrize("dose", [-1, "-1", math.nan, math.inf, "nan", "inf", "1+-2", 10**400, "1+inf"])
def test_negative_and_non_finite_doses_are_refused(dose):
    with pytest.raises(ValueError, match="negative or not finite") as error:
        parse_condition("A+B", dose)
    assert repr(dose) in str(error.value)
    assert "'A+B'" in str(error.value)


@pytest.mark.parametrize("dose", [1e39, 1e-40])
def test_doses_that_float32_cannot_hold_are_refused(dose):
    with pytest.raises(ValueError, match="32-bit"):
        parse_condition("A", dose)


@pytest.mark.parametrize("dose", ["low", "1+x", "", "1++2", True, "5uM"])
def test_doses_that_are_no_numbers_are_refused(dose):
    with pytest.raises(ValueError, match="not a number"):
        parse_condition("A+B", dose)


@pytest.mark.parametrize(("label", "dose", "n_parts", "n_doses"), [("A", "1+2", 1, 2), ("A+B", "1+2+3", 2, 3)])
def test_a_wrong_number_of_doses_is_refused(label, dose, n_parts, n_doses):
    with pytest.raises(ValueError, match="give one dose, or one per part") as error:
        parse_condition(label, dose)
    assert f"{label!r} has {n_parts} part(s) but dose {dose!r} has {n_doses}" in str(error.value)


@given(st.lists(st.tuples(conditions, shuffles), min_size=1, max_size=20))
def test_a_column_is_read_cell_by_cell(cells):
    texts = []
    for condition, rng in cells:
        parts = [(name, dose) for name, dose in condition if dose < 1e15] or [("A", 1.0)]
        rng.shuffle(parts)
        texts.append(written(parts, rng=rng))
    labels, amounts = (pd.Series(column, dtype=object) for column in zip(*texts, strict=True))
    distinct, inverse = parse_column(labels, amounts, control="control", delimiter="+")
    assert distinct == sorted(set(distinct))
    assert [distinct[i] for i in inverse] == [parse_condition(*text) for text in texts]


@pytest.mark.parametrize("dtype", ["float32", "float64", "category", "int64", object])
def test_the_type_of_the_dose_column_changes_nothing(dtype):
    values = [1, 0, 3] if dtype == "int64" else np.array([0.1, 0, 3], dtype="float32").astype(str).astype(float)
    amounts = pd.Series(values).astype(dtype)
    distinct, inverse = parse_column(pd.Series(["A", "A", "control"]), amounts, control="control", delimiter="+")
    assert [distinct[i] for i in inverse] == [(("A", 1.0 if dtype == "int64" else 0.1),), (), ()]


def test_numbers_and_texts_in_one_dose_column():
    amounts = pd.Series([0, 1.5, "1+5", "0"], dtype=object)
    labels = pd.Series(["control", "A", "B+A", "A"]).astype("category")
    distinct, inverse = parse_column(labels, amounts, control="control", delimiter="+")
    assert [distinct[i] for i in inverse] == [(), (("A", 1.5),), (("A", 5.0), ("B", 1.0)), ()]


def test_codes_are_padded_and_in_the_vocabulary():
    cells = [(), (("A", 2.0),), (("A", 1.0), ("C", 3.0))]
    codes, amounts = ConditionCodec(("A", "B", "C")).encode(cells, np.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(codes, [[0, 2], [-1, -1], [0, -1], [0, 2]])
    np.testing.assert_array_equal(amounts, [[1, 3], [0, 0], [2, 0], [1, 3]])
    assert (codes.dtype, amounts.dtype) == (np.int32, np.float32)
    assert tokens(cells) == ("A", "C")


def test_a_label_outside_the_vocabulary_names_the_nearest():
    with pytest.raises(ValueError, match="'IFNb' is not in the vocabulary; did you mean 'IFNB'"):
        ConditionCodec(("IFNB", "TGFB")).encode_one((("IFNb", 1.0),), 1)


def test_close_matches_names_the_known_when_none_is_near():
    assert close_matches("zzz", ["a", "b"]) == "; known: 'a', 'b'."
    assert close_matches("zzz", [f"n{i:02}" for i in range(12)]).endswith("'n09', ....")
    assert close_matches(0, [0, 1]) == "; did you mean '0'?"
