-- Claim messages that have waited in a queue for longer than they may: their callers are told, though no replica is free
-- for them. They are nearly always among the first ones, at which one worker looks each time. Publishers note when one
-- ends its time, so where it is not there, and only then, somebody looks through the whole queue: in slices, each of which
-- goes on where the last one has stopped, whichever worker asked for that.
--
-- KEYS  1 workers   2 claims   3 ends (sorted set of seconds in which the time of some message ends)
--       4 pass through the queue (hash)   5 needs (see pass_on.lua)   6 who looks at the first messages
--       7.. priority lists
-- ARGV  1 worker   2 id of the first claim; those of the others count up from it   3 most messages to claim
--       4 how many messages to look at in one go   5 bytes after which to look at no more
--       6 ms between two slices   7 ms to rest after a pass, for each 1000 messages of it
--       8 ms after which others look at the first messages in this worker's place, 0 not to look at them
--       9 what the keys of the tasks with one need begin with
--
-- A publisher writes the time, in seconds since the epoch, as "until" into the header of times (see attempts.py).
-- A pass begins at the end of the lists where messages come: what others take or add moves nothing past it.
--
-- Returns the ms until it is worth to look again, -1 for the usual time; the messages in the order of their ids; and
-- what tasks need that were passed on. Or -1 alone when the worker has lost its lease.
local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease or tonumber(lease) <= 0 then
    return -1
end
local clock = redis.call('TIME')
local now, now_ms = tonumber(clock[1]), clock[1] * 1000 + math.floor(clock[2] / 1000)
local most, in_one_go, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local messages = {}

-- What was passed on; a need of which no task is left is forgotten.
local needs = {}
for _, need in ipairs(redis.call('SMEMBERS', KEYS[5])) do
    if redis.call('EXISTS', ARGV[9] .. need) == 1 then
        needs[#needs + 1] = need
    else
        redis.call('SREM', KEYS[5], need)
    end
end

local function is_late(message)
    local times = string.find(message, '"flyte_celery_times"', 1, true)
    local ends = times and string.match(message, '"until": ?(%d+)', times)
    return ends and tonumber(ends) < now
end

local function claim(message)
    redis.call('HSET', KEYS[2], string.format('%d', tonumber(ARGV[2]) + #messages), message)
    messages[#messages + 1] = message
end

-- Calls look(message, index) for messages of a list from an index on, up to the bounds, in steps that fit their size.
-- Returns how many there were, and whether the list goes on.
local function walk(list, from, backwards, look)
    local seen, bytes, step = 0, 0, 10
    while seen < in_one_go and bytes < most_bytes and #messages < most do
        local first, last = from + seen, from + seen + step - 1
        if backwards then
            first, last = -(last + 1), -(first + 1)
        end
        local some = redis.call('LRANGE', list, first, last)
        for i = 1, #some do
            bytes = bytes + #some[i]
            look(some[backwards and #some + 1 - i or i], from + seen + i - 1)
        end
        seen = seen + #some
        if #some < step then
            return seen, false
        end
        -- The way to a place in the middle of a list costs more than what is there: two steps, if they are as expected.
        step = math.max(10, math.min(math.floor((most_bytes - bytes) * seen / bytes), in_one_go - seen))
    end
    return seen, true
end

-- The first ones, which are in the front of what waits: who looks at them goes on doing so, for all workers.
local looks = ARGV[8] ~= '0' and (redis.call('GET', KEYS[6]) or ARGV[1]) == ARGV[1]
if looks then
    redis.call('SET', KEYS[6], ARGV[1], 'PX', ARGV[8])
end
for list = 7, looks and #KEYS or 0 do
    local late = {}
    walk(KEYS[list], 0, true, function(message)
        if is_late(message) then
            late[#late + 1] = message
        end
    end)
    for _, message in ipairs(late) do
        if #messages < most then
            redis.call('LREM', KEYS[list], -1, message)
            claim(message)
        end
    end
end
if #messages == most then
    return {0, messages, needs}
end

local pass = redis.call('HMGET', KEYS[4], 'to', 'list', 'from', 'looked', 'not before')
if pass[5] and now_ms < tonumber(pass[5]) then
    return {tonumber(pass[5]) - now_ms, messages, needs}
end
local to, list, from, looked = pass[1], tonumber(pass[2] or 1), tonumber(pass[3] or 0), tonumber(pass[4] or 0)
if list > #KEYS - 6 then
    list, from = 1, 0  -- it was left by somebody who knows more lists than there are here
end
if not to then
    if #redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. now, 'LIMIT', 0, 1) == 0 then
        return {-1, messages, needs}
    end
    to = now
end
local late = {}
local seen, goes_on = walk(KEYS[6 + list], from, false, function(message, index)
    if #messages + #late < most and is_late(message) then
        late[#late + 1] = {message, index}
    end
end)
-- Each is replaced by what is no message, and all of those go at once: a removal searches the list from an end.
for i = #late, 1, -1 do
    redis.call('LSET', KEYS[6 + list], late[i][2], KEYS[4])
    claim(late[i][1])
end
if #late > 0 then
    local nearer = from > redis.call('LLEN', KEYS[6 + list]) / 2 and -1 or 1
    redis.call('LREM', KEYS[6 + list], nearer * #late, KEYS[4])
end
looked = looked + seen
if #messages == most then
    from = #late > 0 and late[1][2] or from  -- there may be more
elseif goes_on then
    from = from + seen - #late
else
    list, from = list + 1, 0
end
local wait = tonumber(ARGV[6])
if list > #KEYS - 6 then
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. to)
    redis.call('DEL', KEYS[4])
    wait = math.ceil(looked * ARGV[7] / 1000)
    redis.call('HSET', KEYS[4], 'not before', now_ms + wait)
    if redis.call('EXISTS', KEYS[3]) == 0 then
        wait = -1
    end
else
    redis.call('HSET', KEYS[4], 'to', to, 'list', list, 'from', from, 'looked', looked, 'not before', now_ms + wait)
end
redis.call('PEXPIRE', KEYS[4], wait + 60000)
return {wait, messages, needs}
