-- Claim messages that were passed on (see pass_on.lua): the first ones of those with one need, or those that are over,
-- whose callers are to be told though nobody has what they need.
--
-- KEYS  1 workers   2 claims   3 messages   4 ends
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it   3 most messages
--       4 what the keys of the tasks with one need begin with   5 the need, "" for those that are over
--
-- Returns the messages in the order of their ids; or -1 when the worker has lost its lease.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local entries
if ARGV[5] == '' then
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    entries = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, ARGV[3])
else
    entries = redis.call('ZRANGE', ARGV[4] .. ARGV[5], 0, ARGV[3] - 1)
end
local messages = {}
for _, entry in ipairs(entries) do
    local need, kept = ARGV[5], redis.call('HGET', KEYS[3], entry)
    if kept then
        local line = string.find(kept, '\n', 1, true)
        need = string.sub(kept, 1, line - 1)
        messages[#messages + 1] = string.sub(kept, line + 1)
        redis.call('HSET', KEYS[2], string.format('%d', ARGV[2] + #messages - 1), messages[#messages])
        redis.call('HDEL', KEYS[3], entry)
    end
    redis.call('ZREM', ARGV[4] .. need, entry)
    redis.call('ZREM', KEYS[4], entry)
end
return messages
