-- Claim messages that have waited in a queue for longer than they may, wherever they are among its first ones: their
-- callers are told, though no replica is free for them.
--
-- KEYS  1 workers   2 claims   3.. priority lists
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it   3 most messages to claim
--       4 how many messages to look at in each list
--
-- A publisher writes the time, in seconds since the epoch, as "until" into the header of times (see attempts.py).
--
-- Returns the messages in the order of their ids; or -1 when the worker has lost its lease.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local now = tonumber(redis.call('TIME')[1])
local messages = {}
for list = 3, #KEYS do
    for _, message in ipairs(redis.call('LRANGE', KEYS[list], -tonumber(ARGV[4]), -1)) do
        local times = string.find(message, '"flyte_celery_times"', 1, true)
        local until_ = times and string.match(message, '"until": ?(%d+)', times)
        if until_ and tonumber(until_) < now and #messages < tonumber(ARGV[3]) then
            redis.call('LREM', KEYS[list], -1, message)
            redis.call('HSET', KEYS[2], string.format('%d', tonumber(ARGV[2]) + #messages), message)
            messages[#messages + 1] = message
        end
    end
end
return messages
