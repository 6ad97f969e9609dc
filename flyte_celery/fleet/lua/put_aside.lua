-- Let a message wait until it is due (see park.lua). Where its task's id is taken, `more` tells the entries apart.
local function put_aside(later, messages, queues, queue, entry, more, due, list, message)
    if redis.call('HEXISTS', messages, entry) == 1 then
        entry = entry .. ' ' .. more
    end
    redis.call('ZADD', later, due, entry)
    redis.call('HSET', messages, entry, list .. ':' .. message)
    redis.call('ZADD', queues, 'LT', due, queue)
end
