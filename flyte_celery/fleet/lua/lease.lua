-- Take or renew a worker's lease, by the server's clock.
--
-- KEYS  1 workers   ARGV  1 worker   2 milliseconds   3 "take" for a new worker, "renew" for one that has a lease
--
-- Returns 1, or 0 when the lease was lost: somebody has begun to hand back the worker's claims.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if ARGV[3] == 'renew' and (not lease or tonumber(lease) <= 0) then
    return 0
end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2], ARGV[1])
return 1
