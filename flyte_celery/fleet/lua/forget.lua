-- Forget a cached result, with the keys that `find` knows; says how many there were.
local function forget(uses, entries, counts, member, entry)
    local known = redis.call('HGET', entries, member)
    if known then
        redis.call('HINCRBY', counts, 'bytes', -tonumber(string.match(known, '^%d+ (%d+)')))
        redis.call('HDEL', entries, member)
    end
    redis.call('ZREM', uses, member)
    return redis.call('DEL', entry)
end
