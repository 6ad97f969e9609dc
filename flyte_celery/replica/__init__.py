"""The warm children of a worker: the launcher that preloads the application, and the replicas that run tasks.

A replica may use `client` (tasks call tasks) and never `worker`. It runs Celery's own tracer around every task;
what is ours is only *where* a body runs: async bodies on the replica's one event loop, sync bodies on its main
thread.
"""
