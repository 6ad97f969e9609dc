"""The Python packages that an image asks for: compared with an interpreter's, or installed into a virtual environment.

Knows images and installers, and neither Celery nor workers.
"""
