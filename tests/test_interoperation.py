"""What does not need the other libraries; the rest is in tests/parity."""

import sys

import pytest

from robustjax import InputError, interoperation


@pytest.mark.parametrize(
    ("convert", "library"),
    [
        (interoperation.as_foolbox, "foolbox"),
        (interoperation.as_torch_module, "torch"),
    ],
)
def test_a_missing_library_is_one_clear_line(monkeypatch, convert, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"^{library} is not installed.*parity") as e:
        convert(lambda x: x)
    assert "\n" not in str(e.value)


def test_foolbox_gets_the_bounds_and_the_layout(monkeypatch):
    class Foolbox:
        """What is used of it."""

        class models:
            JAXModel = staticmethod(lambda fn, **keywords: (fn(2.0), keywords))

    monkeypatch.setitem(sys.modules, "foolbox", Foolbox)
    logits, keywords = interoperation.as_foolbox(lambda x: 3 * x, bounds=(-1, 1))
    assert float(logits) == 6.0
    assert keywords == {"bounds": (-1, 1), "data_format": "channels_last"}
    with pytest.raises(InputError, match="low < high"):
        interoperation.as_foolbox(lambda x: x, bounds=(1.0, 0.0))
