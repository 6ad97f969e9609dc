"""What the page about RabbitMQ shows runs as shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import RABBITMQ_PAGE, Story
from tests.rabbitmq.server import RabbitServer


@pytest.mark.timeout(300)
def test_the_page_runs_as_it_is_written(rabbit: RabbitServer, tmp_path: Path, redis_url: str) -> None:
    """Its quorum queues, and those of Celery's delayed delivery, take a while to be declared."""
    Story(tmp_path, redis_url, rabbit.new_vhost()).play(RABBITMQ_PAGE)
