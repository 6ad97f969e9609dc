-- Order replicas ahead of the work. The order is known by its moment, by the server's clock, which ends it as well.
--
-- KEYS  1 orders of operators (hash)   ARGV  1 replicas
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = tonumber(redis.call('HGET', KEYS[1], 'prewarm_id') or 0)
-- Two orders of one millisecond are two.
local id = string.format('%d', last == now and now + 1 or now)
redis.call('HSET', KEYS[1], 'prewarm', ARGV[1], 'prewarm_id', id)
