"""Adapters written by the first version load, with the logits they had then."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import ptune
from ptune import PtuneError

FOLDER = Path(
    os.environ.get(
        "PTUNE_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures" / "adapters-0.1"
    )
)
EXPECTED = FOLDER / "expected.json"
pytestmark = pytest.mark.skipif(
    not EXPECTED.is_file(), reason=f"{EXPECTED} is missing; set PTUNE_FIXTURES to its folder"
)
# Written with a setting that no longer exists: the prompt starts at a higher layer.
REFUSED = "bert-deep-from-layer-1"
NAMES = [
    "bert-deep",
    REFUSED,
    "bert-deep-shifted-mlp",
    "bert-input-lstm-after-first",
    "bert-input-mlp-prefix",
    "bloom-deep",
    "deberta-v2-deep",
    "falcon-deep",
    "gpt2-deep",
    "gpt2-input-prefix",
    "llama-input-prefix",
    "minilm-deep",
    "minilm-deep-multilabel",
    "minilm-deep-regression",
    "minilm-input-pair",
    "roberta-input-mean",
]


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text("utf-8"))


def load(name, backbone):
    model = "minilm" if backbone == "minilm" else str(FOLDER / backbone)
    return ptune.load(FOLDER / name, model=model, dtype="float32", device="cpu")


def test_every_adapter_of_the_folder_is_tested(expected):
    folders = {p.parent.name for p in FOLDER.glob("*/adapter_config.json")}
    assert folders == set(NAMES) == set(expected["logits"])
    assert len(NAMES) == 16


@pytest.mark.parametrize("name", [name for name in NAMES if name != REFUSED])
def test_an_adapter_of_the_first_version_gives_the_logits_it_gave_then(name, expected):
    """Within the tolerance that the README of the adapters states."""
    logits = expected["logits"][name]
    classifier = load(name, logits["backbone"])
    kinds = [kind for kind in ("texts", "pairs") if kind in logits]
    inputs = {kind: expected[kind] for kind in kinds}
    largest = max(np.abs(logits[kind]).max() for kind in kinds)
    tolerance = (1e-4 if name.startswith("minilm-") else 1e-5) * largest
    for kind in kinds:
        found = np.stack(list(classifier.logits(inputs[kind])))
        np.testing.assert_allclose(found, logits[kind], rtol=0, atol=tolerance, err_msg=kind)


def test_an_adapter_that_starts_at_a_higher_layer_is_refused_with_the_reason(expected):
    with pytest.raises(PtuneError, match="first_layer") as refused:
        load(REFUSED, expected["logits"][REFUSED]["backbone"])
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "removed" in message
    assert "Train" in message
