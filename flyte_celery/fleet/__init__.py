"""What the processes of a fleet share, in Redis. Nothing else of this package keeps state there.

Every key is built by `names` and expires by itself, unless it holds work.
"""
