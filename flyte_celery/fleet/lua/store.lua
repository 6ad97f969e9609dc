-- Store a result and tell who waits for it, unless the worker has lost its lease: then somebody else runs the task.
--
-- KEYS  1 workers   2 result   ARGV  1 worker, or "" for results without a fence   2 seconds to keep, 0 for ever
--       3 the result in Celery's own form, which is published on the channel of the key's name
--
-- Returns 1, or 0 when nothing was stored.
if ARGV[1] ~= '' then
    local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if not lease or tonumber(lease) <= 0 then
        return 0
    end
end
if tonumber(ARGV[2]) > 0 then
    redis.call('SETEX', KEYS[2], ARGV[2], ARGV[3])
else
    redis.call('SET', KEYS[2], ARGV[3])
end
redis.call('PUBLISH', KEYS[2], ARGV[3])
return 1
