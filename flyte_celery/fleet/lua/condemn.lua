-- Take the lease from workers for good: from then on they can neither claim nor renew. Their score becomes minus the
-- moment, so that everybody can tell since when.
--
-- KEYS  1 workers   ARGV  1.. workers; none means all whose lease is over
--
-- Returns every condemned worker, each followed by the milliseconds since it was.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local over = ARGV
if #ARGV == 0 then
    over = redis.call('ZRANGEBYSCORE', KEYS[1], '(0', now)
end
for _, worker in ipairs(over) do
    local lease = redis.call('ZSCORE', KEYS[1], worker)
    if lease and tonumber(lease) > 0 then
        redis.call('ZADD', KEYS[1], -now, worker)
    end
end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', 0, 'WITHSCORES')
local condemned = {}
for i = 1, #found, 2 do
    condemned[#condemned + 1] = found[i]
    condemned[#condemned + 1] = string.format('%d', now + tonumber(found[i + 1]))
end
return condemned
