"""A model behind warm replicas: handwritten digits, classified by a support vector machine.

    celery -A digits env up          # broker, workers and Flower on this machine
    python demo.py                   # the same, then a burst of real images and a summary
"""

from __future__ import annotations

import os
from typing import Any

import flyte_celery as flyte

app = flyte.init()

warm = flyte.TaskEnvironment(
    name="digits",
    resources=flyte.Resources(cpu=1, memory="512Mi"),
    reusable=flyte.ReusePolicy(
        replicas=(0, 3),  # from nothing to three processes, as demand asks
        concurrency=4,  # each classifies up to four images at once
        idle_ttl=60,
        scaledown_ttl=30,
    ),
)

#: The trained model, once per replica.
model: Any = None


@warm.on_startup
def train() -> None:
    """Train on real data, once per replica and before its first task: 1,397 images of 8 x 8 pixels."""
    global model
    from sklearn.svm import SVC

    images, labels = training_images()
    model = SVC(gamma=0.001).fit(images, labels)


@warm.task
async def classify(image: list[float]) -> int:
    """The digit that an image of 64 grey values shows."""
    return int(model.predict([image])[0])


@warm.task
async def replica_pid() -> int:
    """The process that runs the task."""
    return os.getpid()


# The same, without reuse: every call gets a process of its own, which trains the model first.
cold = warm.clone_with("digits-cold", reusable=None)


@cold.task
def classify_cold(image: list[float]) -> int:
    """The digit that an image shows, from a replica that serves this one call."""
    return int(model.predict([image])[0])


def training_images() -> tuple[Any, Any]:
    """Images and labels to train on; they ship inside scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data[400:], data.target[400:]


def test_images() -> tuple[list[list[float]], list[int]]:
    """400 images that the model has not seen, with what they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data[:400].tolist(), data.target[:400].tolist()
