-- Claim messages that have waited in a queue for longer than they may, wherever they are among its first ones: their
-- callers are told, though no replica is free for them.
--
-- KEYS  1 workers   2 claims   3 needs (see pass_on.lua)   4.. priority lists
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it   3 most messages to claim
--       4 how many messages to look at in each list   5 bytes after which to look at no more
--       6 what the keys of the tasks with one need begin with
--
-- A publisher writes the time, in seconds since the epoch, as "until" into the header of times (see attempts.py).
--
-- Returns the messages in the order of their ids, and what tasks need that were passed on; or -1 when the worker has lost
-- its lease.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local now = tonumber(redis.call('TIME')[1])
local messages = {}
for list = 4, #KEYS do
    local bytes, late = 0, {}
    for from = 1, tonumber(ARGV[4]), 10 do  -- in small steps, for messages may be large
        local some = redis.call('LRANGE', KEYS[list], -(from + 9), -from)
        for i = #some, 1, -1 do
            bytes = bytes + #some[i]
            local times = string.find(some[i], '"flyte_celery_times"', 1, true)
            local ends = times and string.match(some[i], '"until": ?(%d+)', times)
            if ends and tonumber(ends) < now and #messages + #late < tonumber(ARGV[3]) then
                late[#late + 1] = some[i]
            end
        end
        if #some < 10 or bytes > tonumber(ARGV[5]) then
            break
        end
    end
    for _, message in ipairs(late) do
        redis.call('LREM', KEYS[list], -1, message)
        redis.call('HSET', KEYS[2], string.format('%d', tonumber(ARGV[2]) + #messages), message)
        messages[#messages + 1] = message
    end
end
local needs = {}
for _, need in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    if redis.call('EXISTS', ARGV[6] .. need) == 1 then
        needs[#needs + 1] = need
    else
        redis.call('SREM', KEYS[3], need)
    end
end
return {messages, needs}
