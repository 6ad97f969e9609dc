-- Move a dead letter back into its queue, behind everything that waits there.
--
-- KEYS  1 dead letters   2 priority list   ARGV  1 dead letter   2 message
--
-- Returns 1, or 0 when somebody else has taken the letter.
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
    return 0
end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1
