-- Store a result and tell who waits for it, unless the worker no longer owns the task: then somebody else runs it.
--
-- KEYS  1 result   2 workers   3 claims   4 started
-- ARGV  1 the result in Celery's own form   2 seconds to keep it, 0 for ever   3 reply channel of the caller, or ""
--       4 worker, or "" for results without a fence   5 id of the claim, or "" where only the lease counts
--       6 "1" when with this result the task is finished: its claim goes in the same step
--
-- Returns 1, or 0 when nothing was stored.
if ARGV[4] ~= '' then
    local lease = redis.call('ZSCORE', KEYS[2], ARGV[4])
    local owned = lease and tonumber(lease) > 0
    if owned and ARGV[5] ~= '' then
        owned = redis.call('HEXISTS', KEYS[3], ARGV[5]) == 1
    end
    if not owned then
        -- The same write may come twice, when the reply to the first was lost with the connection.
        return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0
    end
end
if tonumber(ARGV[2]) > 0 then
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1])
end
if ARGV[6] == '1' and ARGV[5] ~= '' then
    redis.call('HDEL', KEYS[3], ARGV[5])
    redis.call('HDEL', KEYS[4], ARGV[5])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])  -- for Celery's own waiters, which subscribe to each result
if ARGV[3] ~= '' then
    redis.call('PUBLISH', ARGV[3], #KEYS[1] .. ':' .. KEYS[1] .. ARGV[1])
end
return 1
