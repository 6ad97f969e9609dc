"""How many replicas an environment should have, and how its worker finds out.

`decide` is the pure heart: limits, what was seen, what is remembered and the time go in, a target with its reason
comes out; it and `window` import the standard library alone and perform nothing. Reading the queue's depth, asking
the pool for replicas and draining them belong to the drivers beside them. What never comes in here: how a replica is
started or ended (that is `supervisor`) and which task goes where (that is `worker.pool`).
"""
