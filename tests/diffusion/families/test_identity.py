"""Which weights a base model has, wherever they lie."""

from b4m_pipeline.diffusion.families import base_model_id
from b4m_pipeline.diffusion.params import BaseModelParams


def test_identity_is_of_the_weights_not_of_the_place(tiny_sdxl, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copied = tmp_path / tiny_sdxl.name
    shutil.copytree(tiny_sdxl, copied)
    first, second = (base_model_id(BaseModelParams(path=str(path))) for path in (tiny_sdxl, copied))
    assert first == second
    (weights,) = (copied / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights)
    assert base_model_id(BaseModelParams(path=str(copied))) != first
