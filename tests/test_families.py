"""docs/families.md says what a test finds: tiny models of every family, through each part."""

import families
import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FEW = ["qwen3", "gemma2", "lfm2", "bert"]


@pytest.mark.parametrize("kind", FEW)
def test_a_row_of_the_page(kind):
    assert families.row_of(kind) == families.read_page()[kind]


@pytest.mark.slow
@pytest.mark.parametrize("first", "abcdefghijklmnopqrstuvwxyz")
def test_the_whole_page(first):
    kinds = [k for k in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if k[0] == first and k not in FEW]
    found = {kind: families.row_of(kind) for kind in kinds}
    page = families.read_page()
    assert found == {kind: page.get(kind) for kind in kinds}
