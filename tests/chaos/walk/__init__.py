"""A random walk through what may happen to a fleet: `make walk`, or `python -m tests.chaos.walk --help`.

Workers of several environments on several hosts join, leave, die, are stopped and cut off; tasks come in bursts and
trickles; operators scale, pause, drain and prewarm; new versions are rolled out. All the time a watch reads Redis and
says when a bound, a lease or a device is not what it should be; at the end every task has to be done.

```
__main__    arguments, exit status           walk        the steps, one after the other, and the end in peace
steps       one function per step            world       the fleet, and what the walk has done to it
watch       looks without pause              snapshot    one moment of the fleet, from Redis alone
invariants  pure: moments in, breaches out   replicas    what replicas write themselves: that they exist, and where
project     the app under test
```
"""
