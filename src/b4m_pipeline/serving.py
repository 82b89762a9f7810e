"""The loader that logged models name (see registry/serving.py): this import path is kept."""

from b4m_pipeline.registry.serving import _load_pyfunc

__all__ = ["_load_pyfunc"]
