"""MLflow: tracking, registered adapters, promotion, serving, files for other programs."""
