-- Put claims back at the head of their queue, each exactly once, whoever tries.
--
-- KEYS  1 claims   2 started   3.. priority lists
-- ARGV  groups of three: id, number of the list (1 is KEYS[3]), message
--
-- Returns 1 for each message that went back, 0 for one that was no longer claimed.
local back = {}
for i = 1, #ARGV, 3 do
    local held = redis.call('HDEL', KEYS[1], ARGV[i])
    if held == 1 then
        redis.call('HDEL', KEYS[2], ARGV[i])
        redis.call('RPUSH', KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 2])
    end
    back[#back + 1] = held
end
return back
