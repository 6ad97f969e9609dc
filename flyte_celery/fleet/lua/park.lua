-- Put claimed messages aside until they are due: from the claims into the queue's future work, in one step.
--
-- KEYS  1 workers   2 claims   3 started   4 future work (sorted set: entry -> when it is due, in ms since the epoch)
--       5 its messages (hash: entry -> number of the priority list, a colon, the message)
--       6 queues with future work (sorted set: queue -> when its next is due)
-- ARGV  1 worker   2 queue   3.. groups of five: id of the claim, ms when it is due, task id, number of the list, message
--
-- An entry is a task's id, so that a revocation finds it; where that is taken, the worker and the claim tell them apart.
--
-- Returns for each claim 1 when it was put aside, 2 when it is due already and stays claimed, 0 when it was no longer
-- claimed; or -1 when the worker has lost its lease.
--include put_aside
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answers = {}
for i = 3, #ARGV, 5 do
    local id, due, entry = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if tonumber(due) <= now then
        answers[#answers + 1] = 2
    elseif redis.call('HDEL', KEYS[2], id) == 0 then
        answers[#answers + 1] = 0
    else
        redis.call('HDEL', KEYS[3], id)
        put_aside(KEYS[4], KEYS[5], KEYS[6], ARGV[2], entry, ARGV[1] .. ' ' .. id, due, ARGV[i + 3], ARGV[i + 4])
        answers[#answers + 1] = 1
    end
end
return answers
