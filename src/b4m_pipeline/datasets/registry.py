"""Kedro dataset for an adapter that is kept on disk, logged to MLflow and registered there, in this order."""

from typing import Any

from b4m_pipeline.datasets.adapter import AdapterDataset
from b4m_pipeline.method.adapter import URI_KEY, Adapter
from b4m_pipeline.registry.adapters import RECORD_NAME, adapter_uri, alias_of, fetch_adapter, keep_registered, register_adapter

Args = dict[str, Any] | None


class RegisteredAdapterDataset(AdapterDataset):
    """Saves an adapter to a folder, then registers it (`register_adapter`) unless the registry has it (`keep_registered`).
    Loads the folder, or the version that `load_args` names if it is empty, with its version under "registry_uri".

    Args:
        filepath: a local folder.
        save_args: prefix and alias of the registered model; trial, the alias of those that
            were trained in fewer steps (see `alias_of`); inference, the defaults of its `predict`.
        load_args: model_uri, e.g. models:/b4m-content-koala@candidate.
    """

    def __init__(self, *, filepath: str, save_args: Args = None, load_args: Args = None, metadata: Args = None):
        super().__init__(filepath=filepath, metadata=metadata)
        self._save_args = save_args or {}
        self._model_uri: str | None = (load_args or {}).get("model_uri")

    def save(self, data: Adapter) -> None:
        (self._folder / RECORD_NAME).unlink(missing_ok=True)  # of the weights before these
        super().save(data)
        if uri := data.metadata.get(URI_KEY):  # fetched, not trained
            alias = alias_of(data, self._save_args.get("alias", "candidate"), self._save_args.get("trial"))
            keep_registered(self._folder, uri, alias)
        else:
            register_adapter(self._folder, **self._save_args)

    def load(self) -> Adapter:
        if super()._exists() or not self._model_uri:
            adapter, uri = super().load(), adapter_uri(self._folder)
        else:
            return fetch_adapter(self._model_uri)
        if uri:
            adapter.metadata[URI_KEY] = uri
        return adapter

    def _exists(self) -> bool:
        if super()._exists() or not self._model_uri:
            return super()._exists()
        import mlflow.models
        from mlflow.exceptions import MlflowException

        try:
            return mlflow.models.get_model_info(self._model_uri) is not None
        except MlflowException:
            return False

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"save_args": self._save_args, "model_uri": self._model_uri}
