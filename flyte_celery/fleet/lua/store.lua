-- Store a result and tell who waits for it, unless the worker no longer owns the task: then somebody else runs it.
--
-- KEYS  1 result   2 workers   3 claims   4 started
-- ARGV  1 the result in Celery's own form, "" for none   2 seconds to keep it, 0 for ever
--       3 reply channel of the caller, or ""
--       4 worker, or "" for results without a fence   5 id of the claim, or "" where only the lease counts
--       6 "finished" when nothing is left to do for the task, "again" when its next attempt is submitted: in either case
--         its claim goes in the same step; else ""
--
-- Where it goes into the cache as well:
-- KEYS  5 entry   6 uses (sorted set)   7 entries (hash)   8 counts (hash), all as in `find`   9 who computes it
-- ARGV  7 member   8 task   9 task id   10 ms to keep it in the cache   11 ms to keep what is known of the cache
--       12 most bytes of the environment's cache   13 what keeps an entry of it: its names, added to its size
--
-- Where the next attempt is submitted:
-- KEYS  5 priority list   6 future work   7 its messages   8 queues with future work, all as in `park`
--       9 ends, as in `overdue`
-- ARGV  7 message   8 ms when it is due, 0 for now   9 task id   10 number of the list   11 queue
--       12 the second in which its time ends, 0 for never
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
if ARGV[1] == '' then
    -- The task's result is ignored.
elseif tonumber(ARGV[2]) > 0 then
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1])
end
if ARGV[6] ~= '' and ARGV[5] ~= '' then
    redis.call('HDEL', KEYS[3], ARGV[5])
    redis.call('HDEL', KEYS[4], ARGV[5])
end
if ARGV[6] == 'again' then
    if tonumber(ARGV[8]) == 0 then
        redis.call('LPUSH', KEYS[5], ARGV[7])
    else
        --include put_aside
        local more = ARGV[4] .. ' ' .. ARGV[5]
        put_aside(KEYS[6], KEYS[7], KEYS[8], ARGV[11], ARGV[9], more, ARGV[8], ARGV[10], ARGV[7])
    end
    if tonumber(ARGV[12]) > 0 then
        redis.call('ZADD', KEYS[9], ARGV[12], ARGV[12])
    end
elseif KEYS[5] then
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    --include forget
    local prefix = string.sub(KEYS[5], 1, #KEYS[5] - #ARGV[7])
    forget(KEYS[6], KEYS[7], KEYS[8], ARGV[7], KEYS[5])
    local size = #ARGV[1] + tonumber(ARGV[13])
    redis.call('SET', KEYS[5], ARGV[1], 'PX', ARGV[10])
    redis.call('ZADD', KEYS[6], string.format('%d', now), ARGV[7])
    redis.call('HSET', KEYS[7], ARGV[7], string.format('%d %d %s', now, size, KEYS[1]))
    redis.call('HINCRBY', KEYS[8], 'stored:' .. ARGV[8], 1)
    local bytes = redis.call('HINCRBY', KEYS[8], 'bytes', size)
    -- What was not used for longest goes first: all that is too much, and of what Redis has expired two for each that
    -- comes, so that no more is known than is kept.
    local expired = 0
    while true do
        local oldest = redis.call('ZRANGE', KEYS[6], 0, 0)[1]
        if not oldest or oldest == ARGV[7] then
            break
        end
        local gone = redis.call('EXISTS', prefix .. oldest) == 0
        if bytes > tonumber(ARGV[12]) then
            if not gone then
                redis.call('HINCRBY', KEYS[8], 'evicted', 1)
            end
        elseif gone and expired < 2 then
            expired = expired + 1
        else
            break
        end
        forget(KEYS[6], KEYS[7], KEYS[8], oldest, prefix .. oldest)
        bytes = tonumber(redis.call('HGET', KEYS[8], 'bytes'))
    end
    for i = 6, 8 do
        redis.call('PEXPIRE', KEYS[i], ARGV[11])
    end
    if redis.call('GET', KEYS[9]) == ARGV[9] then
        redis.call('DEL', KEYS[9])
        redis.call('PUBLISH', KEYS[5], ARGV[1])  -- for those who wait for this one to compute it
    end
end
if ARGV[1] ~= '' then
    redis.call('PUBLISH', KEYS[1], ARGV[1])  -- for Celery's own waiters, which subscribe to each result
end
if ARGV[3] ~= '' then
    redis.call('PUBLISH', ARGV[3], #KEYS[1] .. ':' .. KEYS[1] .. ARGV[1])
end
return 1
