--- Milliseconds without any look after which the server must have been away, not a worker, or its clock was set.
local OUTAGE = 3000

--- Until when nothing is taken from workers whose leases are over: after an outage everybody who comes back finds what he
--- had. The pulse says when anybody last looked, and until when those who come back are awaited; without one nobody has
--- looked for an hour.
local function awaited_until(pulse, now, looks)
    local looked, awaited = string.match(redis.call('GET', pulse) or '', '^(%d+) (%d+)$')
    awaited = tonumber(awaited or 0)
    if math.abs(now - tonumber(looked or 0)) > OUTAGE then
        awaited = now + OUTAGE
    end
    if looks then
        redis.call('SET', pulse, string.format('%d %d', now, awaited), 'EX', 3600)
    end
    return awaited
end
