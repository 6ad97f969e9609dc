-- Keep the right to compute a result, or give it up and tell who waits for it.
--
-- KEYS  1 who computes it   2 entry, as the channel of those who wait
-- ARGV  1 task id   2 ms to keep it for, 0 to give it up   3 what to tell them then
--
-- Returns 1, or 0 when somebody else has it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
if tonumber(ARGV[2]) > 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', KEYS[2], ARGV[3])
end
return 1
