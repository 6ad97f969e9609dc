-- Write what a worker has noted of its claims: which are about to run, and which are finished.
--
-- KEYS  1 workers   2 claims   3 started   ARGV  1 worker   2 how many are about to run
--       3.. each one's id and the id of its task, then ids of finished ones
--
-- Returns 1, or 0 when the worker has lost its lease: its claims are somebody else's to hand back, and nothing is written.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return 0
end
local running = tonumber(ARGV[2])
for i = 3, 2 + 2 * running, 2 do
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
for i = 3 + 2 * running, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('HDEL', KEYS[3], ARGV[i])
end
return 1
