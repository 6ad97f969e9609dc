-- Claim calls for replicas other than the environment's own, of those among the first messages of a queue: for a worker
-- that may have none of the environment's, and has room for such.
--
-- KEYS  1 workers   2 claims   3.. priority lists
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it   3 most messages to claim
--       4 how many messages to look at   5 bytes after which to look at no more
--
-- Returns the messages in the order of their ids; or -1 when the worker has lost its lease.
--include front
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local messages, lists = {}, {}
walk_front(3, tonumber(ARGV[4]), tonumber(ARGV[5]), function(message, list)
    if is_beside(message) then
        messages[#messages + 1] = message
        lists[#lists + 1] = list
    end
    return #messages == tonumber(ARGV[3])
end)
for i, message in ipairs(messages) do
    redis.call('LREM', KEYS[lists[i]], -1, message)
    redis.call('HSET', KEYS[2], string.format('%d', ARGV[2] + i - 1), message)
end
return messages
