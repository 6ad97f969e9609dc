-- Forget cached results.
--
-- KEYS  1 uses   2 entries   3 counts   then the entry of each   ARGV  member of each
--
-- Returns how many there were.
local forgotten = 0
for i, member in ipairs(ARGV) do
    local known = redis.call('HGET', KEYS[2], member)
    if known then
        redis.call('HINCRBY', KEYS[3], 'bytes', -tonumber(string.match(known, '^%d+ (%d+)')))
        redis.call('HDEL', KEYS[2], member)
    end
    redis.call('ZREM', KEYS[1], member)
    forgotten = forgotten + redis.call('DEL', KEYS[3 + i])
end
return forgotten
