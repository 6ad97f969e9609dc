-- Store results of one worker and tell who waits for them, but for those whose task it no longer owns: somebody else
-- runs that.
--
-- KEYS  1 workers   2 claims   3 started
--       then for each result: its key, and where it goes into the cache as well:
--       entry, uses (sorted set), entries (hash), counts (hash), all as in `find`, and who computes it
-- ARGV  1 worker, or "" for results without a fence
--       then for each result: itself in Celery's own form   seconds to keep it, 0 for ever
--       reply channel of the caller, or ""   id of the claim, or "" where only the lease counts
--       "1" when with this result the task is finished: its claim goes in the same step   "1" for the cache, and then:
--       member   task   task id   ms to keep it in the cache   ms to keep what is known of the cache
--       most bytes of the environment's cache   what keeps an entry of it: its names, added to its size
--
-- Returns for each result 1, or 0 when it was not stored. A reply channel gets one message for all of its results, each
-- as length of the key, length of the result, key and result.
local key, arg = 3, 1
local function next_key()
    key = key + 1
    return KEYS[key]
end
local function next_arg()
    arg = arg + 1
    return ARGV[arg]
end

local alive = true
if ARGV[1] ~= '' then
    local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
    alive = lease and tonumber(lease) > 0
end

local function owned(claim)
    return alive and (ARGV[1] == '' or claim == '' or redis.call('HEXISTS', KEYS[2], claim) == 1)
end

local function keep(result, payload, cache)
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    local function forget(member, entry)
        local known = redis.call('HGET', cache.entries, member)
        if known then
            redis.call('HINCRBY', cache.counts, 'bytes', -tonumber(string.match(known, '^%d+ (%d+)')))
            redis.call('HDEL', cache.entries, member)
        end
        redis.call('ZREM', cache.uses, member)
        redis.call('DEL', entry)
    end
    local prefix = string.sub(cache.entry, 1, #cache.entry - #cache.member)
    forget(cache.member, cache.entry)
    local size = #payload + tonumber(cache.overhead)
    redis.call('SET', cache.entry, payload, 'PX', cache.ttl)
    redis.call('ZADD', cache.uses, string.format('%d', now), cache.member)
    redis.call('HSET', cache.entries, cache.member, string.format('%d %d %s', now, size, result))
    redis.call('HINCRBY', cache.counts, 'stored:' .. cache.task, 1)
    local bytes = redis.call('HINCRBY', cache.counts, 'bytes', size)
    -- What was not used for longest goes first: all that is too much, and of what Redis has expired two for each that
    -- comes, so that no more is known than is kept.
    local expired = 0
    while true do
        local oldest = redis.call('ZRANGE', cache.uses, 0, 0)[1]
        if not oldest or oldest == cache.member then
            break
        end
        local gone = redis.call('EXISTS', prefix .. oldest) == 0
        if bytes > tonumber(cache.most) then
            if not gone then
                redis.call('HINCRBY', cache.counts, 'evicted', 1)
            end
        elseif gone and expired < 2 then
            expired = expired + 1
        else
            break
        end
        forget(oldest, prefix .. oldest)
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

local outcomes, replies = {}, {}
while key < #KEYS do
    local result, payload, seconds, reply_to, claim = next_key(), next_arg(), next_arg(), next_arg(), next_arg()
    local finished, cache = next_arg() == '1', nil
    if next_arg() == '1' then
        cache = {entry = next_key(), uses = next_key(), entries = next_key(), counts = next_key()}
        cache.computing = next_key()
        cache.member, cache.task, cache.task_id = next_arg(), next_arg(), next_arg()
        cache.ttl, cache.books_ttl, cache.most, cache.overhead = next_arg(), next_arg(), next_arg(), next_arg()
    end
    if owned(claim) then
        if tonumber(seconds) > 0 then
            redis.call('SETEX', result, seconds, payload)
        else
            redis.call('SET', result, payload)
        end
        if finished and claim ~= '' then
            redis.call('HDEL', KEYS[2], claim)
            redis.call('HDEL', KEYS[3], claim)
        end
        if cache then
            keep(result, payload, cache)
        end
        redis.call('PUBLISH', result, payload)  -- for Celery's own waiters, which subscribe to each result
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
