-- The offers that hold now, by the server's clock.
--
-- KEYS  1 offers   2 their ends
--
-- Returns the offers, in the order of their workers' names.
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local workers = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')
table.sort(workers)
local found = {}
for _, worker in ipairs(workers) do
    local offer = redis.call('HGET', KEYS[1], worker)
    if offer then
        found[#found + 1] = offer
    end
end
return found
