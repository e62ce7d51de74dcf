"""Constructors refuse what makes no model: values of the wrong type and out of range, by the name of the argument."""

import inspect
import sys

import numpy as np
import pytest

from multipert.model import CPA, GEARS, SAMSVAE, Biolord, DecoderOnly, LatentAdditive, LinearAdditive
from multipert.model._arguments import check_hidden, check_width, check_widths, hidden_widths, is_list

MODELS = [LinearAdditive, LatentAdditive, DecoderOnly, CPA, SAMSVAE, Biolord, GEARS]
NOT_ARGUMENTS = {"self", "adata", "registry", "preset"}
# anything else that is annotated as a number may not be negative
SIGNED = {"mask_logit"}
POSITIVE = {"temperature", "embedding_scale", "offset_lr_factor", "mask_prior"}
MAY_BE_ZERO = {"perturbation_layers", "adversary_warmup"}

TEXTS = ("64", "no")
NO_SWITCH = (*TEXTS, "False", 1, 0, 1.0, [True], object())
NO_WHOLE_NUMBER = (*TEXTS, 6.5, 64.0, True, np.True_, [8], {8: 1}, object())
NO_NUMBER = (*TEXTS, True, np.True_, [0.1], 1j, object())
NO_WIDTHS = (*TEXTS, 6.5, True, {8: 1}, (8, None), (8, "4"), (8, True), (8, 2.5), [[8]], np.array(8), object())
NO_CHOICE = ("nope", "", 5, True, ["batch"], object())


def arguments(cls):
    """Annotations of the arguments that the constructor takes, as they are written."""
    parameters = inspect.signature(cls.__init__).parameters
    return {name: one.annotation for name, one in parameters.items() if name not in NOT_ARGUMENTS}


def cases():
    """Model, argument, value and error; derived from annotations, so that none is forgotten."""
    for cls in MODELS:
        for name, annotation in arguments(cls).items():
            wrong: list[tuple[type, tuple]]
            if annotation.startswith("bool"):
                wrong = [(TypeError, NO_SWITCH)]
            elif "Sequence[int]" in annotation:
                kinds = (value for value in NO_WIDTHS if not isinstance(value, np.ndarray))
                wrong = [(TypeError, (*kinds, np.array(8))), (ValueError, ((8, 0), (-8,), [0]))]
                wrong += [(ValueError, (0, -1, ()))] if annotation.startswith("int") else [(TypeError, (8,))]
            elif annotation.startswith("int"):
                wrong = [(TypeError, NO_WHOLE_NUMBER), (ValueError, (-1,) if name in MAY_BE_ZERO else (0, -1))]
            elif annotation.startswith("float"):
                wrong = [(TypeError, NO_NUMBER), (ValueError, (np.nan, np.inf, -np.inf))]
                wrong += [] if name in SIGNED else [(ValueError, (-0.1, -1))]
                wrong += [(ValueError, (0, 0.0))] if name in POSITIVE else []
                if "rate" in name or name in ("pretraining", "mask_prior"):
                    wrong.append((ValueError, (1, 1.0, 64)))
            elif "Sequence[str]" in annotation:
                wrong = [(TypeError, ("batch", 5, True, object()))]
            elif "DataFrame" in annotation:
                wrong = [(TypeError, ("batch", 5, object()))]
            else:
                wrong = [(ValueError, NO_CHOICE)]
            for error, values in wrong:
                for value in values:
                    yield pytest.param(cls, name, value, error, id=f"{cls.__name__}-{name}-{_shown(value)}")


def _shown(value):
    return "object" if type(value) is object else f"{type(value).__name__}:{value}"


@pytest.fixture(scope="module")
def data(toys):
    """One screen for each model, set up."""
    screens = {}
    for cls in MODELS:
        screens[cls] = toys.screen()
        cls.setup_anndata(screens[cls], context_key=None if cls is GEARS else "context")
    return screens


@pytest.mark.parametrize(("cls", "name", "value", "error"), cases())
def test_a_value_that_makes_no_model_is_named(data, cls, name, value, error):
    with pytest.raises(error) as raised:
        cls(data[cls], **{name: value})
    message = str(raised.value)
    assert message.startswith(f"{name} is a " if name == "edges" else f"{name}=")
    assert any(remedy in message for remedy in ("must", "known: ", "did you mean", "are whole numbers", "give "))
    if name != "edges":
        # a text is shown as one, or "64" would look right
        assert repr(value) in message


@pytest.mark.parametrize("cls", MODELS)
def test_every_value_of_a_preset_passes(cls):
    checks = sys.modules[cls.__module__]._CHECKS
    assert set(checks) <= set(arguments(cls))
    for preset in cls.presets.values():
        for name, value in (cls.presets["default"] | preset).items():
            if name in checks:
                checks[name](name, value)


@pytest.mark.parametrize("cls", MODELS)
def test_numbers_of_numpy_are_numbers(data, cls):
    small = {"n_hidden": np.int32(6), "n_latent": np.int64(4), "dropout_rate": np.float32(0.25)}
    small = {name: value for name, value in small.items() if name in arguments(cls)}
    switches = {
        name: np.bool_(cls.presets["default"].get(name, False))
        for name, annotation in arguments(cls).items()
        if annotation.startswith("bool")
    }
    found = cls(data[cls], **small, **switches).module.state_dict()
    plain = cls(data[cls], **{name: value.item() for name, value in (small | switches).items()}).module.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in plain.items()}
    assert all((value == plain[name]).all() for name, value in found.items())


def test_what_was_left_out_is_the_preset_s(data):
    made = [LatentAdditive(data[LatentAdditive], n_hidden=6, **more) for more in ({}, {"n_latent": None})]
    assert [model.module.cell_encoder.output.out_features for model in made] == [64, 64]
    assert [model.module.cell_encoder.output.in_features for model in made] == [6, 6]


def test_false_is_no_value_that_was_left_out(data):
    assert LinearAdditive.presets["default"]["inject_covariates"] is True
    model = LinearAdditive(data[LinearAdditive], inject_covariates=False)
    assert model.module.covariates.width == 0
    assert not model.tags.uses_context


@pytest.mark.parametrize("value", [(8, 4), [8, 4], np.array([8, 4]), range(8, 3, -4)])
def test_widths_are_any_list_of_one_dimension(value):
    check_widths("n_hidden", value)
    check_hidden("n_hidden", value)
    assert hidden_widths(value, 5, None) == (8, 4)
    assert hidden_widths(value, 5, 2) == (8, 4)
    with pytest.raises(ValueError, match=r"holds 2 width\(s\), but n_layers=3"):
        hidden_widths(value, 3, 3)


@pytest.mark.parametrize("value", ["84", b"84", {8: 4}, 8, None, np.array(8), np.ones((2, 2)), iter((8, 4))])
def test_what_is_no_list(value):
    assert not is_list(value)
    with pytest.raises(TypeError, match="must be a list of widths"):
        check_widths("n_hidden", value)


def test_a_width_may_be_one():
    check_width("n_hidden", 1)
    assert hidden_widths(1, 3, 3) == (1, 1, 1)
