-- Pass claimed messages on to workers that have what their tasks need: from the claims to the tasks with that need, in
-- one step.
--
-- KEYS  1 workers   2 claims   3 started   4 needs (set)   5 messages (hash: entry -> need, line feed, message)
--       6 ends (sorted set: entry -> when it is over, in ms since the epoch)
-- ARGV  1 worker   2 what the keys of the tasks with one need begin with
--       3.. groups of six: id of the claim, need, task id, place among the tasks with that need, end in ms or "", message
--
-- An entry is a task's id, so that a revocation finds it; where that is taken, the worker and the claim tell them apart.
--
-- Returns for each claim 1 when it was passed on, 0 when it was no longer claimed; or -1 when the worker has lost its
-- lease.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local answers = {}
for i = 3, #ARGV, 6 do
    local id, need, entry = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local held = redis.call('HDEL', KEYS[2], id)
    if held == 1 then
        redis.call('HDEL', KEYS[3], id)
        if redis.call('HEXISTS', KEYS[5], entry) == 1 then
            entry = entry .. ' ' .. ARGV[1] .. ' ' .. id
        end
        redis.call('SADD', KEYS[4], need)
        redis.call('ZADD', ARGV[2] .. need, ARGV[i + 3], entry)
        redis.call('HSET', KEYS[5], entry, need .. '\n' .. ARGV[i + 5])
        if ARGV[i + 4] ~= '' then
            redis.call('ZADD', KEYS[6], ARGV[i + 4], entry)
        end
    end
    answers[#answers + 1] = held
end
return answers
