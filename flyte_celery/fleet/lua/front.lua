-- Calls look(message, list) for the first messages of the queue, whose lists are KEYS from `first` on, the most urgent
-- one first, until it says that it is enough, or so many messages or bytes were looked at. Returns how many were.
local function walk_front(first, most, most_bytes, look)
    local seen, bytes = 0, 0
    for list = first, #KEYS do
        local from, step, there = 0, 1, 1
        while there == step do
            local some = redis.call('LRANGE', KEYS[list], -(from + step), -(from + 1))
            there = #some
            for i = there, 1, -1 do
                seen, bytes = seen + 1, bytes + #some[i]
                if look(some[i], list) or seen >= most or bytes >= most_bytes then
                    return seen
                end
            end
            from = from + there
            -- As many as fit, if they are as large as those before: some may have megabytes.
            if there == step then
                step = math.max(1, math.min(math.floor((most_bytes - bytes) * seen / bytes), most - seen, 10 * from))
                there = step
            end
        end
    end
    return seen
end

-- Whether a call is for replicas other than the environment's own, as its caller says (see overrides.py).
local function is_beside(message)
    -- Not from the quotation mark on: messages are full of these.
    local _, to = string.find(message, '_celery_overrides"', 1, true)
    return to ~= nil and string.find(message, '^: ?{"beside": ?true', to + 1) ~= nil
end
