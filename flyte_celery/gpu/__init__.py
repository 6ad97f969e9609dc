"""This host and its devices: what there is, under Flyte's names, and who has it. Knows neither Celery nor Redis.

`host` puts together what `discover` finds and what an operator has declared (`declare`), and says what is missing for
an environment. `leases` gives devices to replicas, `visibility` says how a replica sees only its own, `health` which of
them are broken.
"""
