-- Look a result up in the cache, and take the right to compute it where it is not there.
--
-- KEYS  1 entry   2 uses (sorted set: member -> last use in ms)   3 entries (hash: member -> "stored size key")
--       4 counts (hash)   5 who computes it
-- ARGV  1 member   2 task   3 age in ms from which it is too old, "" for never   4 seconds to keep a result, 0 for ever
--       5 task id that asks for the right, "" for none   6 ms for which it gets it
--
-- Returns the entry; else nil where nobody asks for the right, 0 for one that has it now, and {id, ms} of the one who
-- has it.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local entry = redis.call('GET', KEYS[1])
local known = entry and redis.call('HGET', KEYS[3], ARGV[1])
if known then
    local stored, key = string.match(known, '^(%d+) %d+ (.*)$')
    if ARGV[3] == '' or now - tonumber(stored) < tonumber(ARGV[3]) then
        redis.call('ZADD', KEYS[2], 'XX', string.format('%d', now), ARGV[1])
        redis.call('HINCRBY', KEYS[4], 'hits:' .. ARGV[2], 1)
        -- The id of a hit is that of the task which computed it: whoever is given the id finds the result there.
        if redis.call('EXISTS', key) == 0 then
            if tonumber(ARGV[4]) > 0 then
                redis.call('SETEX', key, ARGV[4], entry)
            else
                redis.call('SET', key, entry)
            end
        end
        return entry
    end
end
if ARGV[5] == '' then
    return false
end
local holder = redis.call('GET', KEYS[5])
if holder and holder ~= ARGV[5] then
    return {holder, redis.call('PTTL', KEYS[5])}
end
redis.call('SET', KEYS[5], ARGV[5], 'PX', ARGV[6])
return 0
