"""Devices of this host: what there is, under Flyte's names. Knows neither Celery nor Redis."""
