"""Faults under load, and what became of every task: `make chaos`, or `python -m tests.chaos --help`.

A run starts a Redis server and workers of its own, submits tasks without pause, does something terrible, mends it, and
then compares three books that know nothing of each other: what was submitted, what the tasks themselves wrote to files
when they began and ended (`recorder`), and the results in Redis. `verdict` says which promises were kept.

```
__main__   arguments, exit status        run       one case: load, fault, wait, judge
load       submits tasks                 fleet     the Redis server, the workers, repairs
project    the app under test            steps     where a worker can be made to die between two steps of a claim
recorder   files of starts and ends      leases    sees which workers lose their lease
faults/    one function per fault        verdict   pure: books in, judgement out       report   the table
```
"""
