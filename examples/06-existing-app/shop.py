"""An environment beside the plain tasks of a Celery app that exists already."""

from __future__ import annotations

import os

from celery import Celery

import flyte_celery as flyte

app = Celery("shop", broker="redis://localhost:6379/0", backend="redis://localhost:6379/0")


@app.task
def send_mail(address: str) -> str:
    """A plain task: its queue, its workers and its settings stay as they are."""
    return f"mail to {address} from process {os.getpid()}"


flyte.init(app=app)

ml = flyte.TaskEnvironment(
    name="shop-ml",
    reusable=flyte.ReusePolicy(replicas=(0, 2), concurrency=4, idle_ttl=60),
)


@ml.task
async def recommend(product: str) -> list[str]:
    """A task of the environment."""
    return [f"{product} case", f"{product} cable"]


if __name__ == "__main__":
    print(send_mail.delay("ada@example.org").get(timeout=30))
    print(recommend.delay("phone").get(timeout=30))
