-- Take the lease from workers for good: from then on they can neither claim nor renew. Their score becomes minus the
-- moment, so that everybody can tell since when.
--
-- KEYS  1 workers   2 pulse (see pulse.lua)   3 graves (sorted set: buried worker -> when it may be forgotten, in ms)
--       4 there while the graves need no look
-- ARGV  1 "look" takes it from all whose lease is over, "leave" from ARGV[2]   2 worker, "" for a client that is none
--       3 ms of its lease   4 seconds between two looks at the graves
--
-- A worker that looks lives: its own lease is renewed before.
--
-- Returns every condemned worker, each followed by the milliseconds since it was; the graves, where it is time to look at
-- them; and the milliseconds for which leases that are over are not taken yet.
--include pulse

local mode, worker = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function lives(member)
    return tonumber(redis.call('ZSCORE', KEYS[1], member) or 0) > 0
end

local over, graves, wait = {}, {}, 0
if mode == 'leave' then
    over = {worker}
else
    if lives(worker) then
        redis.call('ZADD', KEYS[1], now + ARGV[3], worker)
    end
    wait = math.max(0, awaited_until(KEYS[2], now, true) - now)
    if wait == 0 then
        over = redis.call('ZRANGEBYSCORE', KEYS[1], '(0', now)
    end
    if redis.call('EXISTS', KEYS[3]) == 1 and redis.call('SET', KEYS[4], 1, 'NX', 'EX', ARGV[4]) then
        graves = redis.call('ZRANGE', KEYS[3], 0, -1)
        redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
    end
end
for _, member in ipairs(over) do
    if lives(member) then
        redis.call('ZADD', KEYS[1], -now, member)
    end
end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', 0, 'WITHSCORES')
local condemned = {}
for i = 1, #found, 2 do
    condemned[#condemned + 1] = found[i]
    condemned[#condemned + 1] = string.format('%d', now + tonumber(found[i + 1]))
end
return {condemned, graves, wait}
