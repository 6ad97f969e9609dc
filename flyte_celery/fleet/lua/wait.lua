-- Note that a task waits for results, and look whether they wait for it: then none of them would ever end.
--
-- KEYS  1 entry of the task
-- ARGV  1 what the keys of all entries begin with   2 id of the task   3 milliseconds that the entry holds
--       4 the entry: {"name": ..., "for": [ids of tasks]}
--
-- A task goes on when any of those that it waits for has ended, so it can never go on only where all tasks wait that can
-- be reached from it. The walk ends at the first one that does not wait.
--
-- Returns ids and names by turns, from the task to the last one, which waits for the task; nothing when it is no circle.
local MOST = 1000  -- tasks to look at

redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
local first = ARGV[2]
local names, before, last = {}, {[first] = first}, nil
local pending, looked = {first}, 0
while #pending > 0 do
    local id = table.remove(pending)
    local entry = redis.call('GET', ARGV[1] .. id)
    looked = looked + 1
    if not entry or looked > MOST then
        return {}
    end
    entry = cjson.decode(entry)
    names[id] = entry.name
    for _, awaited in ipairs(entry['for']) do
        if awaited == first then
            last = last or id
        elseif not before[awaited] then
            before[awaited] = id
            pending[#pending + 1] = awaited
        end
    end
end
local chain = {}
while last do
    table.insert(chain, 1, names[last])
    table.insert(chain, 1, last)
    last = last ~= first and before[last] or nil
end
return chain
