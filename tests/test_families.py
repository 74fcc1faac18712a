"""docs/families.md says what is found: tiny models of every family, through each part."""

import families
import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FEW = ["qwen3", "gemma2", "lfm2", "bert"]


@pytest.mark.parametrize("kind", FEW)
def test_a_row_of_the_page(kind):
    assert families.row_of(kind) == families.read_page()[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FEW))[::10])
def test_every_tenth_row(kind):
    """All of them take minutes: `python tests/families.py` makes the page anew."""
    assert families.row_of(kind) == families.read_page().get(kind)
