-- Finish a claim and keep its message among the dead letters of its queue.
--
-- KEYS  1 workers   2 claims   3 started   4 dead letters (list, newest first)   ARGV  1 worker   2 id   3 dead letter
--
-- Returns 1, or 0 when it is not this worker's to finish any more.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 or redis.call('HDEL', KEYS[2], ARGV[2]) == 0 then
    return 0
end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('LPUSH', KEYS[4], ARGV[3])
return 1
