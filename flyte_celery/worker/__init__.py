"""The Celery worker's main process, when it serves an environment.

It stays a real Celery worker: consumer, revokes, ETA, rate limits, events and remote control are Celery's. What is
ours hangs on documented hooks: the pool class, bootsteps, control commands. It runs no user code, so it survives
what kills a replica. This package never imports `client`.
"""
