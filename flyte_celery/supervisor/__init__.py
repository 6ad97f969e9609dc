"""Children of one worker: how they are started, spoken to, watched and ended.

`wire` frames messages on a socket, `lifecycle` decides (pure: events in, actions out), `processes` performs.
This package knows neither Celery nor Redis, and nothing of what a replica runs; it never decides *how many*
replicas there should be (that is `autoscaler.decide`) nor *which task* goes where (that is `worker.pool`).
"""
