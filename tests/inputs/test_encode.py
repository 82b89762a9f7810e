"""Pictures and captions encoded by the tiny random SDXL."""

import pytest

from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSetError


def test_a_token_that_the_text_encoder_would_not_read_is_an_error(tiny_manifest, tiny_base, caplog):
    manifest, pictures = tiny_manifest
    long = manifest.assign(caption=[f"a {token} " + "toy " * 30 for token in manifest.token])
    encode_training_set(long, pictures, tiny_base)
    assert "is not read, it is too long" in caplog.text
    late = manifest.assign(caption=["toy " * 30 + f"in {token} style" for token in manifest.token])
    with pytest.raises(TrainingSetError, match="content/cup/0: the text encoder reads 24 tokens, and 'snq' comes after"):
        encode_training_set(late, pictures, tiny_base)
