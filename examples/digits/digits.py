"""A model behind warm replicas: handwritten digits, classified by a support vector machine.

celery -A digits env up     # broker, workers and Flower on this machine, until Ctrl-C
python burst.py             # app code, in another terminal
python demo.py              # both, with a summary
"""

from __future__ import annotations

from functools import cache
from typing import Any

# Imported once per worker; replicas are forks that share it.
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import flyte_celery as flyte

app = flyte.init()

warm = flyte.TaskEnvironment(
    name="digits",
    resources=flyte.Resources(cpu=1, memory="512Mi"),
    reusable=flyte.ReusePolicy(
        replicas=(0, 3),  # from nothing to three processes, as demand asks
        concurrency=4,  # each takes up to four images at once
        scaledown_ttl=30,  # seconds until surplus replicas go
        idle_ttl=60,  # seconds until the whole environment rests at zero
    ),
    env_vars={"OMP_NUM_THREADS": "1"},  # replicas are the parallelism here
)

#: Images at the end of the data set that the model never sees in training.
HELD_OUT = 400

#: The trained model of this replica.
model: Any = None


@warm.on_startup
def train() -> None:
    """Once per replica, before its first task: train on 1,397 images and choose the best kernel width."""
    global model
    images, labels = _data()
    search = GridSearchCV(SVC(), {"gamma": [0.0005, 0.001, 0.002]}, cv=3)
    model = search.fit(images[:-HELD_OUT], labels[:-HELD_OUT]).best_estimator_


@warm.task
async def classify(image: list[float]) -> int:
    """The digit that an image of 8 x 8 grey values shows."""
    return int(model.predict([image])[0])


# The twin without reuse: every call gets a process of its own, which trains the model first.
cold = warm.clone_with("digits-cold", reusable=None)


@cold.task
def classify_cold(image: list[float]) -> int:
    """The same, from a replica that serves this one call."""
    return int(model.predict([image])[0])


def unseen() -> tuple[list[list[float]], list[int]]:
    """The images that the model has not seen, and the digits that they show."""
    images, labels = _data()
    return images[-HELD_OUT:].tolist(), labels[-HELD_OUT:].tolist()


@cache
def _data() -> tuple[Any, Any]:
    """1,797 real scans with their labels; they ship inside scikit-learn."""
    digits = load_digits()
    return digits.data, digits.target
