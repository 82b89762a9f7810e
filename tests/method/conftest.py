"""Fixtures of the method's tests."""

import pytest
from diffusers import UNet2DConditionModel


@pytest.fixture
def unet(tiny_sdxl):
    return UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")
