-- Put claims back at the head of their queue, each exactly once, whoever tries.
--
-- KEYS  1 claims   2 started   3 attempts (hash: message's tag -> starts that were lost)   4.. priority lists
-- ARGV  groups of five: id, number of the list (1 is KEYS[4]), message, tag, "1" when a start of it was lost
--
-- Returns the lost starts of each message so far, -1 for one that was no longer claimed.
local lost = {}
for i = 1, #ARGV, 5 do
    local count = -1
    if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('RPUSH', KEYS[3 + tonumber(ARGV[i + 1])], ARGV[i + 2])
        count = 0
        if ARGV[i + 4] == '1' then
            count = redis.call('HINCRBY', KEYS[3], ARGV[i + 3], 1)
            redis.call('EXPIRE', KEYS[3], 604800)
        end
    end
    lost[#lost + 1] = count
end
return lost
