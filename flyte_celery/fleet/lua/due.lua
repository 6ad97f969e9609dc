-- Move what is due of a queue's future work into the queue, behind what waits there, the longest due first.
--
-- KEYS  1 future work   2 its messages   3 queues with future work   4.. priority lists (see park.lua)
-- ARGV  1 queue   2 most messages to move
--
-- Returns the milliseconds until the next one is due, 0 when more is due already, -1 when there is none.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
    local kept = redis.call('HGET', KEYS[2], entry)
    if kept then
        local colon = string.find(kept, ':', 1, true)
        local list = 3 + tonumber(string.sub(kept, 1, colon - 1))
        -- It was parked by somebody who knew more lists than there are now.
        redis.call('LPUSH', KEYS[math.min(list, #KEYS)], string.sub(kept, colon + 1))
        redis.call('HDEL', KEYS[2], entry)
    end
    redis.call('ZREM', KEYS[1], entry)
end
local following = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #following == 0 then
    redis.call('ZREM', KEYS[3], ARGV[1])
    return -1
end
redis.call('ZADD', KEYS[3], following[2], ARGV[1])
return math.max(0, math.ceil(tonumber(following[2]) - now))
