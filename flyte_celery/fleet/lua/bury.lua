-- Finish a claim and keep its message among the dead letters of its queue.
--
-- KEYS  1 claims   2 started   3 dead letters (list, newest first)   ARGV  1 id   2 dead letter
--
-- Returns 1, or 0 when it was no longer claimed.
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
    return 0
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[2])
return 1
