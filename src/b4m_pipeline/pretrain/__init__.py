"""How the embedded base model is made: a miniature SDXL for emoji (corpus, VAE, denoiser, CLIP, assembly)."""
