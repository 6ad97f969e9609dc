"""Your process: makes or extends the Celery app, submits tasks, waits for results.

Web servers and scripts load this package, replicas too (tasks call tasks); it never imports `worker` or `replica`.
"""
