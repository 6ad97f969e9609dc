"""What tests share: waiting, processes, a private Redis server, real workers.

Helpers know Celery's command line and Redis, and nothing of `flyte_celery`: they start and watch what a user would.
"""
