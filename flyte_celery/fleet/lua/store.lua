-- Say how attempts of one worker have ended: store their results and tell who waits for them, or submit the next
-- attempts. But not for those whose task it no longer owns: somebody else runs that.
--
-- KEYS  1 workers   2 claims   3 started
--       then for each end: the key of the result, and for what goes with it:
--       "cache"  entry, uses (sorted set), entries (hash), counts (hash), all as in `find`, and who computes it
--       "again"  priority list, future work, its messages, queues with future work, all as in `park`; ends, as in
--                `overdue`
-- ARGV  1 worker, or "" for results without a fence
--       then for each end: the result in Celery's own form, "" for none   seconds to keep it, 0 for ever
--       reply channel of the caller, or ""   id of the claim, or "" where only the lease counts
--       "1" when nothing is left to do for the attempt: its claim goes in the same step   what goes with it, or "":
--       "cache"  member   task   task id   ms to keep it in the cache   ms to keep what is known of the cache
--                most bytes of the environment's cache   what keeps an entry of it: its names, added to its size
--       "again"  message   ms when it is due, 0 for now   task id   number of the list   queue
--                the second in which its time ends, 0 for never
--
-- Returns for each 1, or 0 when nothing was stored. A reply channel gets one message for all of its results, each as
-- length of the key, length of the result, key and result.
local key, arg = 3, 1
local function next_key()
    key = key + 1
    return KEYS[key]
end
local function next_arg()
    arg = arg + 1
    return ARGV[arg]
end

--include forget
--include put_aside

local alive = true
if ARGV[1] ~= '' then
    local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
    alive = lease and tonumber(lease) > 0
end

local function owned(claim)
    return alive and (ARGV[1] == '' or claim == '' or redis.call('HEXISTS', KEYS[2], claim) == 1)
end

local function read_cache()
    return {entry = next_key(), uses = next_key(), entries = next_key(), counts = next_key(), computing = next_key(),
        member = next_arg(), task = next_arg(), task_id = next_arg(), ttl = next_arg(), books_ttl = next_arg(),
        most = tonumber(next_arg()), overhead = tonumber(next_arg())}
end

-- Entries that make room beyond what has come: a bound that was lowered takes effect over many stores, and not in one
-- that stops the server.
local evictions_left = 100

local function keep(result, payload, cache)
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    local prefix = string.sub(cache.entry, 1, #cache.entry - #cache.member)
    forget(cache.uses, cache.entries, cache.counts, cache.member, cache.entry)
    local size = #payload + cache.overhead
    redis.call('SET', cache.entry, payload, 'PX', cache.ttl)
    redis.call('ZADD', cache.uses, string.format('%d', now), cache.member)
    redis.call('HSET', cache.entries, cache.member, string.format('%d %d %s', now, size, result))
    redis.call('HINCRBY', cache.counts, 'stored:' .. cache.task, 1)
    local bytes = redis.call('HINCRBY', cache.counts, 'bytes', size)
    -- What was not used for longest goes first: while there is too much, as many bytes as have come, and a little more.
    -- And of what Redis has expired two for each that comes, so that no more is known than is kept.
    local expired, full = 0, bytes
    while true do
        local oldest = redis.call('ZRANGE', cache.uses, 0, 0)[1]
        if not oldest or oldest == cache.member then
            break
        end
        local gone = redis.call('EXISTS', prefix .. oldest) == 0
        if bytes > cache.most then
            if full - bytes >= size then
                if evictions_left == 0 then
                    break
                end
                evictions_left = evictions_left - 1
            end
            if not gone then
                redis.call('HINCRBY', cache.counts, 'evicted', 1)
            end
        elseif gone and expired < 2 then
            expired = expired + 1
        else
            break
        end
        forget(cache.uses, cache.entries, cache.counts, oldest, prefix .. oldest)
        bytes = tonumber(redis.call('HGET', cache.counts, 'bytes'))
    end
    for _, known in ipairs({cache.uses, cache.entries, cache.counts}) do
        redis.call('PEXPIRE', known, cache.books_ttl)
    end
    if redis.call('GET', cache.computing) == cache.task_id then
        redis.call('DEL', cache.computing)
        redis.call('PUBLISH', cache.entry, payload)  -- for those who wait for this one to compute it
    end
end

local function read_next_attempt()
    return {list = next_key(), later = next_key(), messages = next_key(), queues = next_key(), ends = next_key(),
        message = next_arg(), due = next_arg(), task_id = next_arg(), number = next_arg(), queue = next_arg(),
        over = next_arg()}
end

local function submit(again, claim)
    if tonumber(again.due) == 0 then
        redis.call('LPUSH', again.list, again.message)
    else
        local more = ARGV[1] .. ' ' .. claim
        put_aside(again.later, again.messages, again.queues, again.queue, again.task_id, more, again.due, again.number,
            again.message)
    end
    if tonumber(again.over) > 0 then
        redis.call('ZADD', again.ends, again.over, again.over)
    end
end

local outcomes, replies = {}, {}
while key < #KEYS do
    local result, payload, seconds, reply_to, claim = next_key(), next_arg(), next_arg(), next_arg(), next_arg()
    local finished, with = next_arg() == '1', next_arg()
    local cache = with == 'cache' and read_cache()
    local again = with == 'again' and read_next_attempt()
    if owned(claim) then
        if payload ~= '' then
            if tonumber(seconds) > 0 then
                redis.call('SETEX', result, seconds, payload)
            else
                redis.call('SET', result, payload)
            end
        end
        if finished and claim ~= '' then
            redis.call('HDEL', KEYS[2], claim)
            redis.call('HDEL', KEYS[3], claim)
        end
        if cache then
            keep(result, payload, cache)
        elseif again then
            submit(again, claim)
        end
        if payload ~= '' then
            redis.call('PUBLISH', result, payload)  -- for Celery's own waiters, which subscribe to each result
        end
        if reply_to ~= '' then
            local told = replies[reply_to] or {}
            replies[reply_to] = told
            told[#told + 1] = #result .. ':' .. #payload .. ':' .. result .. payload
        end
        outcomes[#outcomes + 1] = 1
    else
        -- The same write may come twice, when the reply to the first was lost with the connection.
        outcomes[#outcomes + 1] = redis.call('GET', result) == payload and 1 or 0
    end
end
for channel, told in pairs(replies) do
    redis.call('PUBLISH', channel, table.concat(told))
end
return outcomes
