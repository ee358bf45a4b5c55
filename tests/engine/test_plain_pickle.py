"""Pickles give arrays and tensors, and run nothing."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from aff_seg.engine import plain_pickle
from aff_seg.engine.checkpoint_file import read_checkpoint
from aff_seg.engine.plain_pickle import ForbiddenGlobalError
from aff_seg.errors import UserError


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["float32", ">f4", "float16", "float64", "int64", "bool"])
def test_arrays_come_back_bit_by_bit(protocol, dtype):
    rows = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    given = {"rows": rows, "columns": np.asfortranarray(rows), "one": rows[1, 1], "none": rows[:0]}
    found = plain_pickle.load(pickle.dumps(given, protocol))
    for name, array in given.items():
        here = array.astype(array.dtype.newbyteorder("="))
        again = found[name].astype(here.dtype, casting="equiv")
        assert again.shape == here.shape and again.tobytes() == here.tobytes()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_and_plain_values_come_back(protocol):
    net = torch.nn.Linear(2, 3)
    given = {"net": net.state_dict(), "own": net.weight, "half": torch.ones(2).half()[1:]}
    content = pickle.dumps({**given, "text": ["a", None, 1.5, (2, True)]}, protocol)
    found = plain_pickle.load(content)
    assert isinstance(found["net"], OrderedDict) and found["text"] == ["a", None, 1.5, (2, True)]
    assert torch.equal(found["net"]["weight"], net.weight)
    assert torch.equal(found["own"], net.weight) and torch.equal(found["half"], given["half"])


def test_text_of_python_2_is_latin_1():
    assert plain_pickle.load(b"\x80\x02U\x02a\xe9q\x00.") == "aé"


def test_numbers_of_python_2_come_back():
    """Their bytes are text there."""
    scalar, (kind, content) = np.float32(1.7).__reduce__()
    text = content.decode("latin1")
    assert plain_pickle.load(pickle.dumps(Call(scalar, kind, text), 2)) == np.float32(1.7)
    rebuild, args, state = np.float32([1.7]).__reduce__()
    array = Call(rebuild, *args, state=(*state[:4], text))
    assert plain_pickle.load(pickle.dumps(array, 2)) == np.float32([1.7])


def test_arrays_of_objects_are_named():
    with pytest.raises(ForbiddenGlobalError, match="numpy.dtype..object"):
        plain_pickle.load(pickle.dumps(np.array([None])))


class Call:
    """Unpickling this calls ``function``."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args, state)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.mkdir, "{proof}"),
        (eval, "__import__('os').mkdir('{proof}')"),
        (getattr, torch, "load"),
        (torch.load, "{proof}"),
        (np.load, "{proof}"),
        (np.fromfile, "{proof}"),
    ],
)
def test_other_calls_are_named_and_not_made(call, tmp_path):
    function, *args = call
    args = [arg.format(proof=tmp_path / "ran") if isinstance(arg, str) else arg for arg in args]
    if torch in args:
        args[args.index(torch)] = "torch"
    content = pickle.dumps({"model": Call(function, *args)})
    with pytest.raises(ForbiddenGlobalError, match=function.__name__):
        plain_pickle.load(content)
    assert not (tmp_path / "ran").exists()


def test_a_tensor_is_no_way_in(tmp_path):
    """The memory of a tensor is a pickle within the pickle."""
    evil = pickle.dumps(Call(os.mkdir, str(tmp_path / "ran")), 2)
    content = pickle.dumps(Call(torch.storage._load_from_bytes, evil))
    with pytest.raises(pickle.UnpicklingError):
        plain_pickle.load(content)
    assert not (tmp_path / "ran").exists()


# A type that says there are numbers where there is the address of an object.
DOCTORED = Call(np.dtype, "V8", state=(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))


@pytest.mark.parametrize(
    "call",
    [
        Call(np.ndarray, (1,), "O", b"A" * 8),
        Call(
            *np.zeros(1).__reduce__()[:1],
            np.ndarray,
            (0,),
            "O",
            state=(1, (1,), DOCTORED, 0, b"A" * 8),
        ),
        Call(*np.float32(0).__reduce__()[:1], DOCTORED, b"A" * 8),
        Call(*np.zeros(1).__reduce_ex__(5)[:1], b"A" * 8, DOCTORED, (1,), "C"),
    ],
)
def test_arrays_hold_no_addresses_of_the_file(call, tmp_path):
    """Arrays of NumPy would follow them where they are read, here as the items of a dictionary."""
    (tmp_path / "evil.pkl").write_bytes(
        pickle.dumps({"model": {}, "state": Call(OrderedDict, call)})
    )
    torch.save({"model": {}, "state": Call(OrderedDict, call)}, tmp_path / "evil.pth")
    for name in ("evil.pkl", "evil.pth"):
        with pytest.raises(UserError, match="is damaged|holds more than tensors"):
            read_checkpoint(str(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x04garbage.",
        pickle.dumps({"a": np.ones(100)})[:200],
        pickle.dumps(Call(np.ndarray, "wrong")),
        b"\x80\x02U\x01aQ.",
    ],
)
def test_damage_is_told_apart(content):
    with pytest.raises(pickle.UnpicklingError) as caught:
        plain_pickle.load(content)
    assert not isinstance(caught.value, ForbiddenGlobalError)
